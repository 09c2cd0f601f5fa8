"""Where a failed variant first goes wrong: tensor by tensor in graph order, named with its PyTorch module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxpress.exporter.state import State
from onnxpress.quantize.graphs import module_of
from onnxpress.quantize.probing import MASK_FILL, float_outputs, open_probe
from onnxpress.runtime.errors import OnnxpressError

_LIMITS = (0.1, 0.02, 0.004, 0.001)
_TOLERANCE_FP32 = 1e-3

Feeds = Mapping[str, npt.NDArray[np.int64]]
Found = dict[str, Any]


def first_divergence(state: State, graph: Path, feeds: Feeds) -> Found | None:
    """The first tensor that differs, or None if none does on these inputs.

    A quantized or converted graph is compared with the traced float32 graph, by tensor name. The traced graph itself
    is compared with PyTorch, by the outputs of its modules.

    Returns:
        tensor, node, op_type, module, and difference: |difference| over the tensor's largest magnitude.
    """
    assert state.traced is not None
    reference = _all_tensors(state.traced, feeds)
    if graph != state.traced:
        tensors = _all_tensors(graph, feeds)
        for limit in _LIMITS:  # the first large error says more than the first one
            found = _compare(tensors, reference, graph, limit)
            if found is not None:
                return found
    return _compare(reference, _pytorch_tensors(state, feeds), state.traced, _TOLERANCE_FP32)


def _compare(
    found: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[Any]], graph: Path, limit: float
) -> Found | None:
    for node in onnx.load(str(graph), load_external_data=False).graph.node:
        for name in node.output:
            if name not in found or name not in expected or found[name].shape != expected[name].shape:
                continue
            difference = _relative_difference(found[name], expected[name])
            if not difference <= limit:  # also when it is not a number
                return {
                    "tensor": name,
                    "node": node.name,
                    "op_type": node.op_type,
                    "module": module_of(node),
                    "difference": difference if np.isfinite(difference) else None,
                }
    return None


def _relative_difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Largest |difference| over the largest magnitude expected; not a number if `found` is not. Where the expected
    value only says "minus infinity" to a softmax, any large negative one will do."""
    compared = np.abs(expected) < MASK_FILL
    a, b = found[compared].astype(np.float64), expected[compared].astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0)) / (float(np.abs(b).max(initial=0.0)) or 1.0)


def _all_tensors(path: Path, feeds: Feeds) -> dict[str, npt.NDArray[Any]]:
    """Every float tensor of a graph for `feeds`, without onnxruntime's own fusions, empty if it does not run."""
    try:
        session = open_probe(path, as_written=True)
        names = float_outputs(session)
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    # onnxruntime's exception classes have no common base but Exception; a graph that does not run has no tensors.
    except Exception:  # noqa: BLE001
        return {}


def _pytorch_tensors(state: State, feeds: Feeds) -> dict[str, npt.NDArray[Any]]:
    """Outputs of PyTorch's leaf modules, under the names of the traced tensors that hold the same."""
    if state.source.onnx is not None:  # the traced graph is the reference's own
        return {}
    from onnxpress.exporter.loading import load_model

    assert state.traced is not None
    try:
        model = load_model(state.source, state.task, state.config)
    except OnnxpressError:
        return {}
    seen: dict[str, npt.NDArray[Any]] = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if hasattr(output, "numpy"):
                seen[name] = output.detach().float().numpy()

        return hook

    for name, module in model.module.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(record(name))
    model.compute(feeds)
    last_output = {
        module_of(node): node.output[0] for node in onnx.load(str(state.traced), load_external_data=False).graph.node
    }
    return {last_output[name]: value for name, value in seen.items() if name in last_output}
