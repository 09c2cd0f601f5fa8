"""Runs a graph so that values inside it can be seen: their types, and what they are for given inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
import onnxruntime


def open_probe(
    source: Path, values: Iterable[str] | None = None, *, as_written: bool = False
) -> onnxruntime.InferenceSession:
    """A session of a graph on the CPU that has the values asked for as outputs, after its own.

    Args:
        source: the graph, its weights in the file or beside it.
        values: names; None: the results of all nodes.
        as_written: without onnxruntime's own changes. A fused node would not hide the values asked for, but compute
            something else in the others.
    """
    model = onnx.load(str(source), load_external_data=False)
    present = {output.name for output in model.graph.output}
    names = values if values is not None else [name for node in model.graph.node for name in node.output if name]
    # onnxruntime finds out their types, also of operators that are not in the ONNX standard.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
