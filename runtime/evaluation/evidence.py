"""What each example adds to a model's primary figure, so that the figure of any selection of the examples follows.

A selection is how often each example is in it: once or not at all for a part of a file, several times for a resample.
The figures of many selections are worked out at once; those of the whole file are of the libraries in the modules of
the tasks, with which these agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Kind = Literal["share", "perplexity", "rank correlation"]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Numbers of each example, in order; of text-generation, of each window of the texts.

    `share`: (credit, of how much): both are summed and the figure is 100 x their ratio. `perplexity`: (log likelihood,
    tokens). `rank correlation`: (what the model says, what people say).
    """

    kind: Kind
    rows: tuple[tuple[float, float], ...]

    @classmethod
    def mean(cls, credits: Iterable[float]) -> Evidence:
        """For a figure that is 100 x the mean of each example's credit, 0 to 1."""
        return cls("share", tuple((float(credit), 1.0) for credit in credits))

    def figures(self, counts: IntArray) -> FloatArray:
        """The primary figure of selections, float64 [selections], in points or, of perplexity, as it is.

        Args:
            counts: how often each example is in each selection, int64 [selections, examples].
        """
        return _FIGURES[self.kind](np.asarray(self.rows, np.float64).T, counts)


def _share(columns: FloatArray, counts: IntArray) -> FloatArray:
    """100 x the credit of all together over what there was to earn; 0 where that is nothing."""
    credit, most = (counts @ column for column in columns)
    result: FloatArray = 100.0 * credit / np.where(most > 0, most, 1.0)
    return result


def _perplexity(columns: FloatArray, counts: IntArray) -> FloatArray:
    """exp of minus the mean log likelihood of a token; infinite where that is more than a float holds."""
    likelihoods, tokens = (counts @ column for column in columns)
    with np.errstate(over="ignore"):
        result: FloatArray = np.exp(-likelihoods / tokens)
    return result


def _rank_correlation(columns: FloatArray, counts: IntArray) -> FloatArray:
    """100 x Spearman's correlation; 0 where it is not defined, as in correlation.py."""
    found, gold = columns
    finite = np.isfinite(found)
    first, second = _ranks(np.where(finite, found, 0.0), counts), _ranks(gold, counts)
    products = (counts * first * second).sum(axis=1)
    spread = np.sqrt((counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1))
    defined = (spread > 0) & ~(counts[:, ~finite] > 0).any(axis=1)
    result: FloatArray = 100.0 * np.where(defined, products / np.where(spread > 0, spread, 1.0), 0.0)
    return result


def _ranks(values: FloatArray, counts: IntArray) -> FloatArray:
    """Ranks of the values in each selection less their mean, equal values sharing one: float64 [selections, examples].

    One sort serves all selections: what stands before a value in one of them is a sum over its counts.
    """
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    before = np.zeros((len(counts), len(values) + 1))
    np.cumsum(counts[:, order], axis=1, out=before[:, 1:])
    ends = np.append(starts[1:], len(values))
    middles = (before[:, starts] + before[:, ends] - before[:, -1:]) / 2  # (lowest + highest rank - 1 - all) / 2
    ranks = np.empty((len(counts), len(values)))
    ranks[:, order] = middles[:, group]
    return ranks


_FIGURES: dict[str, Callable[[FloatArray, IntArray], FloatArray]] = {
    "share": _share,
    "perplexity": _perplexity,
    "rank correlation": _rank_correlation,
}
