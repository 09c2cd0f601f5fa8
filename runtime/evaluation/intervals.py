"""How far the difference between two models, measured on some examples, may be from that on all others like them.

A paired bootstrap over examples: the examples are drawn again, with replacement, as many as there are, and both models
are scored on the same draw. The interval ends at the percentiles of these differences (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 13 and 16). It knows what the examples show and nothing else: where both
models did equally on each of them, it has no width, however few they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from onnxpress.runtime.evaluation.base import Evaluation, Scores
from onnxpress.runtime.evaluation.evidence import FloatArray, IntArray

RESAMPLES = 2000
_SEED = 20_240_229
_AT_ONCE = 2_000_000
"""Counts that are in memory at a time."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference in points, of perplexity in percent, and where it lies with the confidence that was asked for."""

    difference: float
    """What the second model has more than the first; more perplexity is worse, more of anything else better."""
    low: float
    high: float

    @property
    def finite(self) -> bool:
        """False where the examples say nothing: a single one, or a figure that is no number."""
        return all(map(math.isfinite, (self.difference, self.low, self.high)))


def paired_interval(evaluation: Evaluation, before: Scores, after: Scores, level: float = 0.95) -> Interval:
    """The difference of two models' primary figures, with its confidence interval.

    Args:
        evaluation: what both were scored on.
        before: of the model that is compared with.
        after: of the other.
        level: the share of such intervals that hold the true difference.
    """
    size = len(before.evidence.rows)
    assert size == len(after.evidence.rows), "scores of different examples"
    difference = evaluation.change(before.primary, after.primary)
    if size < 2:
        return Interval(difference, -math.inf, math.inf)
    found = np.concatenate([_changes(evaluation, before, after, counts) for counts in resamples(size)])
    if not np.isfinite(found).all():
        return Interval(difference, -math.inf, math.inf)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(difference, low, high)


def resamples(size: int, number: int = RESAMPLES) -> Iterator[IntArray]:
    """Draws of `size` examples of as many, always the same ones.

    Yields:
        how often each example was drawn: int64 [some of the draws, size], `number` draws in all.
    """
    random = np.random.default_rng(_SEED)
    for start in range(0, number, most := max(1, _AT_ONCE // size)):
        draws = min(most, number - start)
        drawn = random.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
        yield np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)


def _changes(evaluation: Evaluation, before: Scores, after: Scores, counts: IntArray) -> FloatArray:
    one, other = before.evidence.figures(counts), after.evidence.figures(counts)
    with np.errstate(invalid="ignore"):  # infinite perplexities of both
        result: FloatArray = np.asarray(evaluation.change(one, other))
    return result
