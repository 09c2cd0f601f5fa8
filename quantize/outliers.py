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
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx

from onnxpress.quantize.activations import Feeds, channel_peaks, products_by_activation
from onnxpress.quantize.graph_edit import GraphEdit


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
    products = products_by_activation(model, ("MatMul",))
    if not products:
        return Tamed(0, 0, ())
    peaks = channel_peaks(model, list(products), feeds)
    edit = GraphEdit(model, "tame")
    smoothed = split = 0
    float32_products: list[str] = []
    for activation, nodes in products.items():
        peak = peaks[activation]
        limit = float(np.quantile(peak, config.smooth_quantile))
        if peak.max() < config.worth * limit or limit <= 0:
            continue
        width = sum(edit.weight(node).shape[1] for node in nodes)
        if width >= len(peak):
            edit.smooth({activation: nodes}, np.maximum(1.0, peak / limit).astype(np.float32))
            smoothed += 1
        else:
            count = max(1, round(config.split_share * len(peak)))
            float32_products += _split(edit, activation, nodes, np.sort(np.argsort(peak)[-count:]).astype(np.int64))
            split += 1
    edit.finish()
    return Tamed(smoothed, split, tuple(float32_products))


def _split(
    edit: GraphEdit, activation: str, nodes: Sequence[onnx.NodeProto], channels: npt.NDArray[np.int64]
) -> list[str]:
    """x W -> (x * keep) W + x[:, channels] W[channels, :]; the names of the products with outliers."""
    rest, outliers = f"{activation}_rest", f"{activation}_outliers"
    keep = np.ones(edit.weight(nodes[0]).shape[0], np.float32)
    keep[channels] = 0
    edit.constant(f"{rest}_keep", keep)
    edit.constant(f"{outliers}_channels", channels)
    edit.insert(activation, "Mul", [activation, f"{rest}_keep"], rest)
    edit.insert(activation, "Gather", [activation, f"{outliers}_channels"], outliers, axis=-1)
    products = []
    for node in nodes:
        result, weight = node.output[0], f"{node.input[1]}_outliers"
        edit.constant(weight, np.ascontiguousarray(edit.weight(node)[channels]))
        node.input[0], node.output[0] = rest, f"{result}_rest"
        products.append(edit.insert(f"{result}_rest", "MatMul", [outliers, weight], f"{result}_outliers"))
        edit.insert(f"{result}_rest", "Add", [f"{result}_rest", f"{result}_outliers"], result)
    return products
