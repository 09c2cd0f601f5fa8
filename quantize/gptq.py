"""GPTQ: rounding that lets the weights not yet rounded make up for the error of those that are.

For a product Y = X W^T with inputs X [tokens, K] and a weight W [N, K], the squared error of Y under a rounded Q is
tr((W - Q) H (W - Q)^T) with H = X^T X. The inputs k are taken in order; each error (W - Q)[:, k] is spread over the
inputs after k so that the error of Y grows least, which the upper Cholesky factor U of H^-1 = U^T U tells:

    W[:, k+1:] -= (W - Q)[:, k] / U[k, k] * U[k, k+1:]

(Frantar et al., 2022, arXiv:2210.17323). Scales are chosen when a block is reached, from what its weights have become.
Unlike onnxruntime's GPTQ, which rounds the result a second time with scales found anew, codes and scales are kept.
Products are calibrated on what the float32 graph gives them, not on what rounded products before them do.

Tried and left out, with the divergence that weight_only.py measures (1.70 for this, 3.53 for the nearest steps): what
rounded products before give as inputs, layer by layer, 1.70; the inputs that matter most first 1.73; scales that weigh
inputs by the diagonal of H 1.71; scales fitted to H once codes are chosen 1.63, for as much work again. Most of what is
left is lost in token embeddings, whose rows are looked up as they are: with them in 8 bits 0.3 is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.quantize.probing import open_probe
from onnxpress.quantize.rounding import ByteArray, FloatArray, Rounded, best_scales, nearest_codes
from onnxpress.runtime.errors import InvalidInputError

Feeds = Mapping[str, npt.NDArray[Any]]

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean; what the paper uses."""
_BATCH = 128  # inputs whose errors are spread over those after them in one go; every block size divides it
_ROWS = 2048  # outputs rounded at a time, so that _BATCH of their inputs stay in the processor's cache
_MEMORY = 2**30  # bytes of H held at a time; more inputs take another pass over the calibration texts


def hessians(source: Path, channels: Mapping[str, int], feeds: Sequence[Feeds]) -> Iterator[tuple[str, FloatArray]]:
    """H / tokens, [K, K], of activations [..., K] of a float32 graph, one after the other.

    Gives nothing for an activation with another number of channels.

    Args:
        source: the graph.
        channels: K of each activation, by the name of the value.
        feeds: inputs of the graph, without padding.

    Raises:
        InvalidInputError: no feeds, or fewer tokens than an activation has channels, which are too few to say how the
            channels go together.
    """
    if not feeds:
        raise InvalidInputError("calibration was asked for without a text to calibrate on; give at least one")
    session = open_probe(source, channels)
    for names in _fitting(channels):
        sums = {name: np.zeros((channels[name], channels[name]), np.float32) for name in names}
        tokens = dict.fromkeys(names, 0)
        for feed in feeds:
            for name, value in zip(names, session.run(names, dict(feed)), strict=True):
                if value.shape[-1] == channels[name]:
                    rows = value.reshape(-1, channels[name])
                    sums[name] += rows.T @ rows
                    tokens[name] += len(rows)
        for name in names:
            H = sums.pop(name)
            if 0 < tokens[name] < len(H):
                raise InvalidInputError(
                    f"calibration on {tokens[name]:,} tokens, but a product has {len(H):,} inputs, which takes at "
                    "least as many; give more text, some 30,000 tokens"
                )
            if tokens[name]:
                yield name, H / np.float32(tokens[name])


def _fitting(channels: Mapping[str, int]) -> Iterator[list[str]]:
    """Activations whose H fit into memory together."""
    names: list[str] = []
    size = 0
    for name, width in channels.items():
        if names and size + 4 * width**2 > _MEMORY:
            yield names
            names, size = [], 0
        names.append(name)
        size += 4 * width**2
    if names:
        yield names


def round_with_compensation(
    matrices: Sequence[FloatArray], H: FloatArray, bits: int, block_size: int, symmetric: bool, damping: float = DAMPING
) -> list[Rounded]:
    """Round the matrices of products that have the same inputs, which go together as H says.

    Args:
        matrices: [N, K] each
        H: [K, K], of any scale.
        bits: 4 or 8
        block_size: weights that share a scale; divides 128
        symmetric: without zero points of their own
        damping: share of H's mean diagonal to add to it; the larger, the nearer to rounding each weight by itself.
    """
    spread = _spread(H, block_size, damping)
    return [_round(matrix, spread, bits, block_size, symmetric) for matrix in matrices]


def _round(matrix: FloatArray, spread: FloatArray, bits: int, block_size: int, symmetric: bool) -> Rounded:
    outputs, inputs = matrix.shape
    width = len(spread)
    codes = np.empty((outputs, width // block_size, block_size), np.uint8)
    scales = np.empty(codes.shape[:2], np.float32)
    zeros = np.empty(codes.shape[:2], np.uint8)
    for start in range(0, outputs, _ROWS):
        rows = slice(start, start + _ROWS)
        weights = np.zeros((width, len(matrix[rows])), np.float32)  # [K, rows]: one input is one run of memory
        weights[:inputs] = matrix[rows].T
        codes[rows], scales[rows], zeros[rows] = _round_rows(weights, spread, bits, block_size, symmetric)
    return Rounded(codes, scales, zeros, bits, inputs, symmetric)


def _spread(H: FloatArray, block_size: int, damping: float) -> FloatArray:
    """U with H^-1 = U^T U, filled up to whole blocks with inputs that are zero and go with no other."""
    width = -(-len(H) // block_size) * block_size
    padded = np.zeros((width, width))
    padded[: len(H), : len(H)] = H
    mean = float(np.trace(padded)) / len(H)
    padded[np.diag_indices(width)] += damping * mean or 1.0
    # With the inputs in reverse the lower factor of H is an upper one, R: H = R R^T, so U = R^-1.
    factor = np.linalg.cholesky(padded[::-1, ::-1])[::-1, ::-1]
    return np.linalg.inv(factor).astype(np.float32)


def _round_rows(
    weights: FloatArray, spread: FloatArray, bits: int, block_size: int, symmetric: bool
) -> tuple[ByteArray, FloatArray, FloatArray]:
    """Codes [rows, B, block_size], scales and zero points [rows, B] of weights [K, rows], which are used up."""
    width, rows = weights.shape
    codes = np.empty((width, rows), np.uint8)
    scales = np.empty((width // block_size, rows), np.float32)
    zeros = np.empty_like(scales)
    for start in range(0, width, _BATCH):
        end = min(start + _BATCH, width)
        errors = np.empty((end - start, rows), np.float32)
        for k in range(start, end):
            block = k // block_size
            if k % block_size == 0:
                scales[block], zeros[block] = best_scales(
                    np.ascontiguousarray(weights[k : k + block_size].T), bits, symmetric
                )
            code = nearest_codes(weights[k], scales[block], zeros[block], bits)
            codes[k] = code
            error = (weights[k] - (code - zeros[block]) * scales[block]) / spread[k, k]
            weights[k + 1 : end] -= np.outer(spread[k, k + 1 : end], error)
            errors[k - start] = error
        weights[end:] -= spread[start:end, end:].T @ errors
    return codes.T.reshape(rows, -1, block_size), scales.T, zeros.T
