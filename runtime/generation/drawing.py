"""The tokens that may be drawn and their weights, and the draw: what runs for each token, in linear time.

Sets and order are those of transformers' logits warpers: temperature, top-k, top-p, min-p. Knows nothing of requests,
penalties and random generators (sampling.py).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import OnnxpressError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_SMALL = 512  # numbers that are sorted at once
_BLOCK = 256  # numbers summed together before one is drawn


def candidates(
    scores: FloatArray, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[IntArray | None, FloatArray]:
    """The tokens that may be drawn at a temperature above 0.

    Args:
        scores: float32 [V], penalties applied.
        temperature: above 0.
        top_k, top_p, min_p: as in `Sampling`; 0, 1 and 0 keep all tokens.

    Returns:
        their ids [K], ascending, or None for all of the vocabulary; and their weights [K], proportional to their
        probabilities, 0 for tokens that were cut off.

    Raises:
        OnnxpressError: `scores` has no finite maximum.
    """
    top = scores.max()
    require_finite(float(top))
    ids: IntArray | None = None
    if 0 < top_k < len(scores):
        ids = likeliest(scores, top_k)
        scores = scores[ids]
    weights = scores - top
    if temperature != 1:
        with np.errstate(over="ignore"):  # -inf is what it should be then
            weights /= np.float32(temperature)
    np.exp(weights, out=weights)
    if top_p < 1:
        _cut_to_mass(weights, top_p)
    if min_p > 0:
        weights[weights < np.float32(min_p)] = 0  # the likeliest token has the weight 1
    return ids, weights


def likeliest(scores: FloatArray, count: int) -> IntArray:
    """Ids, ascending, of the `count` highest scores and of those equal to the last of them."""
    return np.flatnonzero(scores >= np.partition(scores, len(scores) - count)[len(scores) - count])


def _cut_to_mass(weights: FloatArray, share: float) -> None:
    """Set to 0 all but the highest weights that together have `share` of the sum: a weight stays while those before it
    have less. Of equal weights those with lower ids stay.

    A selection in linear time: sorting a vocabulary takes longer than a small model's whole step.
    """
    mass = _sum(weights)
    target = share * mass
    part, above = weights, 0.0  # all that is higher than `part` has the sum `above`, which is less than the target
    while len(part) > _SMALL:
        low, high = _bracket(part, (target - above) / mass if mass > target - above else 1.0)
        higher = part > high
        higher_mass = _sum(part * higher)
        if above + higher_mass >= target:
            part, mass = _taken(part, higher), higher_mass
            continue
        band = _taken(part, (part <= high) & (part >= low))
        band_mass = _sum(band)
        lower_mass = mass - higher_mass - band_mass
        if above + higher_mass + band_mass < target and len(lower := _taken(part, part < low)):
            part, above, mass = lower, above + higher_mass + band_mass, lower_mass
            continue
        done = len(band) == len(part)  # nearly all are equal
        part, above, mass = band, above + higher_mass, band_mass
        if done:
            break
    descending = np.sort(part)[::-1]
    before = np.cumsum(descending, dtype=np.float64)
    before += above
    count = min(int(before.searchsorted(target)) + 1, len(part))
    last = descending[count - 1]
    ties = np.flatnonzero(weights == last)
    kept = count - int(np.count_nonzero(descending > last))
    np.multiply(weights, weights >= last, out=weights)
    weights[ties[kept:]] = 0


def _bracket(values: FloatArray, share: float) -> tuple[np.float32, np.float32]:
    """Two of `values`, low and high, between which probably is the one above which the higher ones have `share` of the
    sum: estimated on a sample."""
    sample = np.sort(values[:: len(values) // 256])[::-1]
    sums = np.cumsum(sample, dtype=np.float64)
    first, last = sums.searchsorted(np.array([share - 0.06, share + 0.06]) * sums[-1])
    return sample[min(last, len(sample) - 1)], sample[min(first, len(sample) - 1)]


def _taken(values: FloatArray, mask: npt.NDArray[np.bool_]) -> FloatArray:
    """`values[mask]`, faster."""
    taken: FloatArray = values[np.flatnonzero(mask)]
    return taken


def _sum(values: FloatArray) -> float:
    return float(values.sum(dtype=np.float64))


def draw(weights: FloatArray, uniform: float) -> int:
    """The place whose share of the cumulated weights contains `uniform`, which is in [0, 1).

    Sums blocks first, because a cumulative sum of the whole is slow.
    """
    start, rest = 0, uniform
    if len(weights) > 2 * _BLOCK:
        sums = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)), dtype=np.float64)
        rest *= float(sums[-1])
        block = _place(sums, rest)
        rest -= float(sums[block - 1]) if block else 0.0
        start = block * _BLOCK
        cumulated = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    else:
        cumulated = np.cumsum(weights, dtype=np.float64)
        rest *= float(cumulated[-1])
    return start + _place(cumulated, rest)


def _place(cumulated: npt.NDArray[np.float64], value: float) -> int:
    """The first place where the sum exceeds `value`; where rounding leaves none, the last that adds to the sum."""
    place = int(cumulated.searchsorted(value, side="right"))
    return place if place < len(cumulated) else int(cumulated.searchsorted(cumulated[-1]))


def require_finite(top: float) -> None:
    """
    Raises:
        OnnxpressError: the highest logit `top` is no number.
    """
    if math.isfinite(top):
        return
    if top == -math.inf:
        raise OnnxpressError("no token is left to choose from: every logit is -inf or forbidden by the grammar")
    raise OnnxpressError(
        f"the model gave the logit {top}, so its output means nothing; try another variant of the bundle (fp32), and "
        "`onnxpress verify` on this machine"
    )
