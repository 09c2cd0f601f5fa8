"""Runs a graph so that values inside it can be seen: their types, and what they are for given inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from onnxpress.quantize.graphs import needed_nodes, replace_messages

Array = npt.NDArray[Any]
MASK_FILL = 1e30
"""Values from here on only ever say "minus infinity" to a softmax."""
_FLOATS = ("tensor(float)", "tensor(float16)")  # numpy has no bfloat16


def open_probe(
    source: Path, values: Iterable[str] | None = None, *, as_written: bool = False
) -> onnxruntime.InferenceSession:
    """A session of a graph on the CPU that has the values asked for as outputs.

    Args:
        source: the graph, its weights in the file or beside it.
        values: names, if any; what they do not need is left out. None: the results of all nodes, after the graph's own.
        as_written: without onnxruntime's own changes. A fused node would not hide the values asked for, but compute
            something else in the others.
    """
    model = onnx.load(str(source), load_external_data=False)
    if values is None:
        _add_outputs(model, [name for node in model.graph.node for name in node.output if name])
    elif names := list(values):
        _keep(model, names)
    return _open(model, source, as_written)


def float_outputs(session: onnxruntime.InferenceSession) -> list[str]:
    """Names of the outputs that are float32 or float16."""
    return [output.name for output in session.get_outputs() if output.type in _FLOATS]


def sizes_of(source: Path, values: Iterable[str], feeds: Mapping[str, Array]) -> dict[str, int]:
    """How many elements values inside a graph have for given inputs, without keeping them: it may take less memory to
    compute all of them than to have them at once.

    Args:
        source: the graph.
        values: names of tensors.
        feeds: its inputs.
    """
    model = onnx.load(str(source), load_external_data=False)
    counts = {f"{name}/size": name for name in values}
    model.graph.node.extend(onnx.helper.make_node("Size", [name], [count]) for count, name in counts.items())
    _add_outputs(model, counts)
    found = _open(model, source, as_written=True).run(list(counts), dict(feeds))
    return {name: int(np.asarray(size)) for name, size in zip(counts.values(), found, strict=True)}


def _add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """onnxruntime finds out their types, also of operators that are not in the ONNX standard."""
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)


def _keep(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Outputs are those named, nodes what they need: logits of all tokens would take as long as many layers."""
    del model.graph.output[:]
    _add_outputs(model, names)
    replace_messages(model.graph.node, needed_nodes(model.graph.node, names))


def _open(model: onnx.ModelProto, source: Path, as_written: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
