"""The activations that matrix products with constant weights read: which there are, and their values for given inputs.

Only positions of real tokens are looked at: padding is masked out wherever it matters, and its values say nothing about
texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from onnxpress.quantize.graphs import save_graph
from onnxpress.quantize.probing import open_probe
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError

Feeds = Mapping[str, npt.NDArray[np.int64]]
"""Inputs of a graph by name; `attention_mask` says which tokens are real. [batch, sequence] each."""
FloatArray = npt.NDArray[np.float32]

_TOKENS_AT_ONCE = 1024
"""So many positions go through a graph together: the values of all its activations are in memory at a time."""


def products_by_activation(
    model: onnx.ModelProto, operators: Sequence[str] = ("MatMul", "Gemm"), exclude: Sequence[str] = ()
) -> dict[str, list[onnx.NodeProto]]:
    """Products x W, of a Gemm also x W^T + b, with a constant float32 weight of two dimensions, by the name of x.

    Args:
        model: a float32 graph.
        operators: what counts as a product.
        exclude: names of products, or of their outputs, to leave out.
    """
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
    }
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if {node.name, *node.output}.intersection(exclude):
            continue
        if node.op_type in operators and node.input[1] in weights and node.input[0] not in weights and _is_plain(node):
            found.setdefault(node.input[0], []).append(node)
    return found


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm only multiplies and adds."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return settings.get("alpha", 1) == settings.get("beta", 1) == 1 and not settings.get("transA")


def is_transposed(node: onnx.NodeProto) -> bool:
    """Whether a product's weight is stored as [N, K]."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def observe(
    model: onnx.ModelProto, activations: Sequence[str], feeds: Sequence[Feeds]
) -> Iterator[dict[str, FloatArray]]:
    """Run a graph on inputs, some at a time, and give the activations' values: float32 [tokens, K] each.

    Args:
        model: its weights in memory.
        activations: names of values, channels last.
        feeds: inputs; must have a real token.

    Raises:
        InvalidInputError: no real token is in the inputs.
        UnsupportedModelError: an activation is not a finite number.
    """
    if not any(_tokens(feed).any() for feed in feeds):
        raise InvalidInputError("there is no token to calibrate on; give at least one text")
    with tempfile.TemporaryDirectory() as folder:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        save_graph(copy, Path(folder) / "model.onnx")
        del copy
        session = open_probe(Path(folder) / "model.onnx", activations)
    for piece in _pieces(feeds):
        values = session.run(list(activations), piece)
        rows = {name: _rows(value, _tokens(piece)) for name, value in zip(activations, values, strict=True)}
        for name, value in rows.items():
            if not np.isfinite(value).all():
                raise UnsupportedModelError(f"its activation {name!r} is not a finite number on a calibration text")
        yield rows


def channel_peaks(model: onnx.ModelProto, activations: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, FloatArray]:
    """The largest magnitude of each channel of each activation, float32 [K]. Arguments and errors as of `observe`."""
    peaks: dict[str, FloatArray] = {}
    for rows in observe(model, activations, feeds):
        for name, values in rows.items():
            peak = np.abs(values).max(axis=0, initial=0)
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return peaks


def _pieces(feeds: Sequence[Feeds]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The inputs with few rows at a time, without rows of padding alone."""
    for feed in feeds:
        filled = _tokens(feed).any(axis=1)
        count = max(1, _TOKENS_AT_ONCE // _tokens(feed).shape[1])
        for start in range(0, int(filled.sum()), count):
            yield {name: value[filled][start : start + count] for name, value in feed.items()}


def _tokens(feed: Feeds) -> npt.NDArray[np.bool_]:
    """[batch, sequence]"""
    mask = feed["attention_mask"] if "attention_mask" in feed else np.ones_like(feed["input_ids"])
    return mask.astype(np.bool_)


def _rows(value: FloatArray, tokens: npt.NDArray[np.bool_]) -> FloatArray:
    """[tokens, K] of an activation [batch, sequence, K], [batch * sequence, K], or of another shape, then all of it."""
    if value.shape[:2] == tokens.shape:
        return value[tokens]
    rows = value.reshape(-1, value.shape[-1])
    return rows[tokens.ravel()] if len(rows) == tokens.size else rows
