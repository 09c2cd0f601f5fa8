"""Keeps a few outlier channels from ruining 8-bit activations, without changing what the float32 graph computes.

Dynamic quantization has one scale for a whole activation, so a channel that is ten times larger than the others leaves
those with a tenth of the 256 steps. For the input x [tokens, K] of matrix products with weights W [K, N]:

- smooth: x W = (x / s) (s W), with s > 1 for outlier channels only. One multiplication of [tokens, K]. The idea, with
  another choice of s, is SmoothQuant's (Xiao et al., 2022, arXiv:2211.10438).
- split:  x W = (x with outliers zeroed) W + x[:, outliers] W[outliers, :], the last product in float32, as LLM.int8()
  does (Dettmers et al., 2022, arXiv:2208.07339). Exact for the outliers, and one more addition of [tokens, N], so it is
  for products that are narrow at their output (N < K), where smoothing is also least able to help.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from onnxpress.quantize.graphs import save_graph

Feeds = Mapping[str, npt.NDArray[np.int64]]
FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class OutlierConfig:
    """What counts as an outlier channel."""

    smooth_quantile: float = 0.98
    """Smoothing brings channels whose peak is above this quantile of all peaks down to it."""
    split_share: float = 0.005
    """Share of channels that splitting takes out, at least one."""
    worth: float = 1.5
    """Activations whose largest peak is below this many times the quantile are left alone."""


@dataclasses.dataclass(frozen=True)
class Tamed:
    """What was done: how many activations were smoothed and split, and the new products that must stay in float32."""

    smoothed: int
    split: int
    float32_products: tuple[str, ...]


def tame_outliers(model: onnx.ModelProto, feeds: Sequence[Feeds], config: OutlierConfig = OutlierConfig()) -> Tamed:
    """Rewrite a float32 graph in place.

    Args:
        model: its weights in memory.
        feeds: inputs to run it on, to see how large each channel gets; real texts.
        config: what counts as an outlier.
    """
    products = _products(model)
    if not products:
        return Tamed(0, 0, ())
    peaks = _channel_peaks(model, list(products), feeds)
    edit = _Edit(model)
    smoothed = split = 0
    for activation, nodes in products.items():
        peak = peaks[activation]
        limit = float(np.quantile(peak, config.smooth_quantile))
        if peak.max() < config.worth * limit or limit <= 0:
            continue
        width = sum(edit.weight(node).shape[1] for node in nodes)
        if width >= len(peak):
            edit.smooth(activation, nodes, np.maximum(1.0, peak / limit).astype(np.float32))
            smoothed += 1
        else:
            count = max(1, round(config.split_share * len(peak)))
            edit.split(activation, nodes, np.sort(np.argsort(peak)[-count:]).astype(np.int64))
            split += 1
    edit.finish()
    return Tamed(smoothed, split, tuple(edit.float32_products))


def _products(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Matrix products with a constant two-dimensional weight, by the activation they share."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            found.setdefault(node.input[0], []).append(node)
    return found


def _channel_peaks(model: onnx.ModelProto, activations: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, FloatArray]:
    """Largest magnitude of each channel (last axis) of each activation, at the positions of real tokens."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {output.name for output in probe.graph.output}
    for name in activations:
        if name not in present:
            probe.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        save_graph(probe, Path(folder) / "probe.onnx")
        session = onnxruntime.InferenceSession(
            str(Path(folder) / "probe.onnx"), options, providers=["CPUExecutionProvider"]
        )
    peaks: dict[str, FloatArray] = {}
    for feed in feeds:
        tokens = feed["attention_mask"].astype(bool)
        for name, value in zip(activations, session.run(list(activations), dict(feed)), strict=True):
            # Padding is masked out wherever it matters; its values say nothing about texts.
            rows = value[tokens] if value.shape[:2] == tokens.shape else value.reshape(-1, value.shape[-1])
            peak = np.abs(rows).max(axis=0)
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return peaks


class _Edit:
    """Collects changes to a graph and applies them so that nodes stay in topological order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._after: dict[str, list[onnx.NodeProto]] = {}  # new nodes, by the value they follow
        self.float32_products: list[str] = []

    def weight(self, node: onnx.NodeProto) -> FloatArray:
        """The product's weight [K, N]."""
        array: FloatArray = numpy_helper.to_array(self._tensors[node.input[1]])
        return array

    def smooth(self, activation: str, nodes: Sequence[onnx.NodeProto], scale: FloatArray) -> None:
        """x W -> (x * (1 / s)) (s W); scale: s, float32 [K]."""
        smooth = f"{activation}_smooth"
        # Not "..._scale": quantize_dynamic gives that name to the scale it computes for an activation.
        self._constant(f"{smooth}_factors", (1.0 / scale).astype(np.float32))
        self._insert(activation, "Mul", [activation, f"{smooth}_factors"], smooth)
        for node in nodes:
            scaled = f"{node.input[1]}_{smooth}"
            self._constant(scaled, self.weight(node) * scale[:, None])
            node.input[0], node.input[1] = smooth, scaled

    def split(self, activation: str, nodes: Sequence[onnx.NodeProto], channels: npt.NDArray[np.int64]) -> None:
        """x W -> (x * keep) W + x[:, channels] W[channels, :]."""
        rest, outliers = f"{activation}_rest", f"{activation}_outliers"
        keep = np.ones(self.weight(nodes[0]).shape[0], np.float32)
        keep[channels] = 0
        self._constant(f"{rest}_keep", keep)
        self._constant(f"{outliers}_channels", channels)
        self._insert(activation, "Mul", [activation, f"{rest}_keep"], rest)
        self._insert(activation, "Gather", [activation, f"{outliers}_channels"], outliers, axis=-1)
        for node in nodes:
            result, weight = node.output[0], f"{node.input[1]}_outliers"
            self._constant(weight, np.ascontiguousarray(self.weight(node)[channels]))
            node.input[0], node.output[0] = rest, f"{result}_rest"
            name = self._insert(f"{result}_rest", "MatMul", [outliers, weight], f"{result}_outliers")
            self._insert(f"{result}_rest", "Add", [f"{result}_rest", f"{result}_outliers"], result)
            self.float32_products.append(name)

    def finish(self) -> None:
        """Put the new nodes in their places and drop weights nothing reads any more."""
        ordered = [new for tensor in self._graph.input for new in self._after.pop(tensor.name, [])]
        for node in self._graph.node:
            ordered.append(node)
            for output in node.output:
                ordered += self._after.pop(output, [])
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del self._graph.node[:]
        self._graph.node.extend(kept)
        used = {name for node in kept for name in node.input}
        tensors = [tensor for tensor in self._graph.initializer if tensor.name in used]
        tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
        del self._graph.initializer[:]
        self._graph.initializer.extend(tensors)

    def _constant(self, name: str, value: npt.NDArray[Any]) -> None:
        tensor = numpy_helper.from_array(value, name)
        self._tensors[name] = tensor
        self._graph.initializer.append(tensor)

    def _insert(self, after: str, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node and return its name: quantize_dynamic is told by name which products to leave alone."""
        name = f"tame_{op_type}_{output}"
        node = helper.make_node(op_type, inputs, [output], name=name, **attributes)
        self._after.setdefault(after, []).append(node)
        return name
