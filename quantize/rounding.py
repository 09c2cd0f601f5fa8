"""Matrices in 4 or 8 bits, in blocks that share a scale and a zero point. Numbers only: knows no graphs and no data.

A block b of `block_size` neighbouring weights of one output becomes codes c of `bits` bits:

    b ~ (c - z) s         z: its zero point, a code too; s: its scale, float32

Symmetric blocks all have z = 2^(bits - 1), and it is not stored.

Glossary of shapes: N outputs of a product, K inputs, B = ceil(K / block_size) blocks. The last block of a row is filled
up with zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

BLOCK_SIZES = (128, 64, 32, 16)
MOST_FILLED = 1 / 8

# Ranges to try, as shares of the one that spans the block. Steps of 4 bits are so wide that clipping the largest weight
# can cost less than it gains for the others; a finer grid gains less than 1 % of the squared error.
_SHARES = {4: (1.14, 1.07, 1.0, 0.93, 0.86, 0.79), 8: (1.0,)}
_CHUNK = 2**16  # weights rounded at a time: what is computed for them stays in the processor's cache


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A matrix [N, K] in blocks."""

    codes: ByteArray
    """[N, B, block_size]"""
    scales: FloatArray
    """[N, B]"""
    zeros: ByteArray
    """[N, B]"""
    bits: int
    inputs: int
    """K"""
    symmetric: bool
    """All zero points are 2^(bits - 1)."""

    def dequantized(self) -> FloatArray:
        """The matrix [N, K] that the codes stand for."""
        values = (self.codes.astype(np.float32) - self.zeros[:, :, None]) * self.scales[:, :, None]
        return values.reshape(len(values), -1)[:, : self.inputs]

    def packed_codes(self) -> ByteArray:
        """[N, B, block_size * bits / 8], the layout of onnxruntime's MatMulNBits: the first of two codes of 4 bits is
        the lower half of its byte."""
        return _packed(self.codes, self.bits)

    def packed_zeros(self) -> ByteArray:
        """[N, ceil(B * bits / 8)], packed like the codes."""
        return _packed(self.zeros, self.bits)


def _packed(codes: ByteArray, bits: int) -> ByteArray:
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    packed: ByteArray = codes[..., ::2] | np.left_shift(codes[..., 1::2], 4, dtype=np.uint8)
    return packed


def fitting_block_size(inputs: int, room: float = MOST_FILLED, largest: int = BLOCK_SIZES[0]) -> int:
    """The largest block size, `largest` at most, that suits rows of so many weights. `room`: how much of a row may be
    filled up, as a share."""
    sizes = [size for size in BLOCK_SIZES if size <= largest]
    return next((size for size in sizes if -inputs % size <= room * inputs), sizes[-1])


def round_to_nearest(matrix: FloatArray, bits: int, block_size: int, symmetric: bool) -> Rounded:
    """Round each weight by itself, with the scales that leave the least squared error of those tried.

    Args:
        matrix: [N, K]
        bits: 4 or 8
        block_size: weights that share a scale
        symmetric: without zero points of their own
    """
    count = -(-matrix.shape[1] // block_size)
    shape = (len(matrix), count)
    codes = np.empty((*shape, block_size), np.uint8)
    scales, zeros = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for rows, blocks in _chunks(matrix, block_size):
        scale, zero = best_scales(blocks, bits, symmetric)
        scales[rows], zeros[rows] = scale, zero
        codes[rows] = nearest_codes(blocks, scale[..., None], zero[..., None], bits)
    return Rounded(codes, scales, zeros, bits, matrix.shape[1], symmetric)


def nearest_codes(weights: FloatArray, scales: FloatArray, zeros: FloatArray, bits: int) -> FloatArray:
    """Codes, as whole float32 numbers, of weights whose scales and zero points are given or broadcast to them."""
    codes: FloatArray = np.rint(weights * _inverse(scales))
    codes += zeros
    return np.clip(codes, 0, 2**bits - 1, out=codes)


def best_scales(blocks: FloatArray, bits: int, symmetric: bool) -> tuple[FloatArray, FloatArray]:
    """Scales and zero points, both float32 [...], of blocks [..., block_size].

    For each range tried, the codes c - z are those of the nearest steps, and the scale is then the one that is best for
    these codes, by least squares: s = <b, c - z> / <c - z, c - z>. It leaves |b|^2 - s <b, c - z>, so the range with
    the largest s <b, c - z> is kept.
    """
    top = float(2**bits - 1)
    steps, zeros = _spanning(blocks, bits, symmetric)
    best, found = np.zeros_like(steps), steps
    for share in _SHARES[bits]:
        codes = blocks * _inverse(steps * np.float32(share))[..., None]
        np.rint(codes, out=codes)
        np.clip(codes, -zeros[..., None], top - zeros[..., None], out=codes)
        along = np.einsum("...i,...i->...", blocks, codes)
        scale = along / np.maximum(np.einsum("...i,...i->...", codes, codes), 1)
        gain = scale * along
        found = np.where(gain > best, scale, found)
        best = np.maximum(best, gain)
    return found, zeros


def _spanning(blocks: FloatArray, bits: int, symmetric: bool) -> tuple[FloatArray, FloatArray]:
    """The scales at which a block's largest and smallest weights are just within reach, and the zero points."""
    low = np.minimum(blocks.min(axis=-1), 0)
    high = np.maximum(blocks.max(axis=-1), 0)
    if symmetric:
        middle = np.float32(2 ** (bits - 1))
        # There is one more step below the middle than above: the side of the largest magnitude gets it.
        return np.where(-low >= high, low, high) / -middle, np.full_like(low, middle)
    steps = (high - low) / np.float32(2**bits - 1)
    return steps, np.rint(-low * _inverse(steps))


def _inverse(scales: FloatArray) -> FloatArray:
    """1 / scale; 0 for the scale 0 of a block of zeros, and where float32 cannot hold the inverse."""
    tiny = np.abs(scales) < np.finfo(np.float32).tiny
    inverse: FloatArray = np.where(tiny, np.float32(0), 1 / np.where(tiny, np.float32(1), scales))
    return inverse


def _chunks(matrix: FloatArray, block_size: int) -> Iterator[tuple[slice, FloatArray]]:
    """Some rows at a time, as blocks [rows, B, block_size]."""
    width = -(-matrix.shape[1] // block_size) * block_size
    rows = max(1, _CHUNK // width)
    for start in range(0, len(matrix), rows):
        part = np.ascontiguousarray(matrix[start : start + rows], np.float32)
        if width != matrix.shape[1]:
            part = np.pad(part, ((0, 0), (0, width - matrix.shape[1])))
        yield slice(start, start + len(part)), part.reshape(len(part), -1, block_size)
