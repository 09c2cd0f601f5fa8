"""Traced graphs of tiny models, and ways to run and edit graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from onnxpress.exporter import tracing
from onnxpress.exporter.cases import make_cases
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.loading import LoadedModel, load_model
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.source import Source, resolve_source
from onnxpress.quantize.graphs import load_graph, save_graph, save_program
from onnxpress.runtime.verification import Case

TASK = "feature-extraction"
Array = npt.NDArray[Any]
Feeds = dict[str, npt.NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Traced:
    """A model in PyTorch, its traced graph on disk, and the verification inputs."""

    source: Source
    model: LoadedModel
    path: Path
    cases: list[Case]

    @property
    def real(self) -> list[Feeds]:
        """Inputs that are real texts."""
        return [case.feeds for case in self.cases if case.real]

    def graph(self) -> onnx.ModelProto:
        """A copy to edit, weights in memory."""
        return load_graph(self.path)


def trace_folder(folder: Path, target: Path, task: str = TASK) -> Traced:
    """Load and trace a model folder for a task; the graph goes to `target`/model.onnx."""
    source = resolve_source(str(folder), ExportConfig())
    with quiet():
        model = load_model(source, task, ExportConfig())
        save_program(tracing.trace(model), target / "model.onnx")
        return Traced(source, model, target / "model.onnx", make_cases(model))


def run_plain(graph: onnx.ModelProto | Path, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Array]:
    """What a graph computes with onnxruntime's own rewriting switched off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    model = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(outputs, feeds)
    return found


def copy_of(graph: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(graph.SerializeToString())


def write(graph: onnx.ModelProto, path: Path) -> Path:
    """Save a copy: saving takes the weights out of a model."""
    save_graph(copy_of(graph), path)
    return path


def initializer(graph: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.graph.initializer if tensor.name == name)


def change_weight(graph: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    """Replace an initializer by a function of it."""
    tensor = initializer(graph, name)
    value = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def add_weight(graph: onnx.ModelProto, name: str, value: Array) -> str:
    graph.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def insert_before_uses(
    graph: onnx.ModelProto, value: str, nodes: Callable[[str, str], list[onnx.NodeProto]], keep: Sequence[str] = ()
) -> None:
    """Let everything that reads `value` read what `nodes(value, new)` make of it, except nodes named in `keep`."""
    new = f"{value}_changed"
    for node in graph.graph.node:
        if node.name not in keep:
            node.input[:] = [new if name == value else name for name in node.input]
    produced = [index for index, node in enumerate(graph.graph.node) if value in node.output]
    position = produced[0] + 1 if produced else 0
    for offset, node in enumerate(nodes(value, new)):
        graph.graph.node.insert(position + offset, node)


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), [output], name=output, **attributes)
