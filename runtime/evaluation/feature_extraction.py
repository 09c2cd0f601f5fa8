"""Accuracy of sentence embedders: do vectors lie as close as people say the sentences are? Figures are scipy's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.sampling import Sample
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores
from onnxpress.runtime.evaluation.correlation import spearman
from onnxpress.runtime.evaluation.drawing import draw, listed
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.rows import Layout, Positions, Row, find_columns, is_number, read_rows, shown
from onnxpress.runtime.verification import row_cosines


@dataclasses.dataclass(frozen=True)
class ScoredPair:
    """Two sentences and how similar people say they are (any scale, higher is more similar)."""

    score: float
    first: str
    second: str

    @property
    def texts(self) -> tuple[str, str]:
        """Both sentences."""
        return self.first, self.second

    @property
    def inputs(self) -> tuple[tuple[str], tuple[str]]:
        """Each sentence."""
        return (self.first,), (self.second,)


class Embeds(Protocol):
    """What is needed of a model."""

    def embed(self, texts: list[str], /) -> npt.NDArray[np.float32]:
        """Vectors float32 [n, d], in the order of `texts`."""


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Columns of a header."""
    return find_columns(
        names,
        chosen,
        score=("score", "label", "similarity", "similarity_score", "relatedness_score", "gold", "relatedness"),
        first=("sentence1", "sentence_1", "sentence_a", "text1", "text_a", "first", "s1", "query"),
        second=("sentence2", "sentence_2", "sentence_b", "text2", "text_b", "second", "s2", "document"),
    )


def _by_order(row: Sequence[str]) -> Positions | None:
    """Columns without a header: the score comes first or last, two sentences follow or precede it."""
    if len(row) >= 3:
        if is_number(row[0]):
            return {"score": 0, "first": 1, "second": 2}
        if is_number(row[2]) and not is_number(row[1]):
            return {"score": 2, "first": 0, "second": 1}
    return None


COLUMNS = {"score": "score", "sentence1": "first", "sentence2": "second"}
_LAYOUT = Layout(_by_name, _by_order, "score, sentence1 and sentence2", "score, sentence, sentence", COLUMNS)


def read(sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None) -> Sample[ScoredPair]:
    """Scored sentence pairs from TSV, CSV, JSONL or datasets; an embedder has no labels.

    With a header, columns are found by name (score, sentence1, sentence2 and the other names common in public data);
    without one, the rows are score, sentence, sentence.

    Raises:
        InvalidInputError: a file is missing, empty, not UTF-8 or has the wrong columns; the text says which line.
    """
    drawn = draw(sources, samples, lambda source: map(_pair_of, read_rows(source, _LAYOUT)), "scored pairs")
    pairs = drawn.items
    if len(pairs) < 2:
        raise InvalidInputError(f"{listed(sources)} gives {len(pairs)} pairs; a correlation needs at least 2")
    if len({pair.score for pair in pairs}) < 2:
        raise InvalidInputError(
            f"all pairs of {listed(sources)} have the same score; a correlation needs different ones"
        )
    return drawn


def _pair_of(row: Row) -> ScoredPair:
    """The pair of a row.

    Raises:
        InvalidInputError: the score is no number or a sentence no text.
    """
    score, first, second = row.cells["score"], row.cells["first"], row.cells["second"]
    if not is_number(score):
        raise InvalidInputError(f"{row.place}: the score {shown(score)} is not a number")
    if not isinstance(first, str) or not isinstance(second, str):
        raise InvalidInputError(f"{row.place}: the sentences must be text")
    return ScoredPair(float(score), first, second)


def figure(pairs: Sequence[ScoredPair]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    return "spearman", "Spearman correlation x 100"


def ask(model: Embeds, pairs: Sequence[ScoredPair]) -> npt.NDArray[np.float32]:
    """The vectors of both sentences of each pair, float32 [2 x pairs, d]."""
    return model.embed([text for pair in pairs for text in pair.texts])


def score(model: Embeds, pairs: Sequence[ScoredPair], vectors: npt.NDArray[np.float32]) -> Scores:
    """Spearman's rank correlation of cosine similarity with the scores, as the STS tasks are scored.

    Raises:
        InvalidInputError: scipy is not installed.
    """
    similarities = row_cosines(vectors[0::2], vectors[1::2]).tolist()
    gold = [pair.score for pair in pairs]
    evidence = Evidence("rank correlation", tuple(zip(similarities, gold, strict=True)))
    return Scores({"spearman": spearman(similarities, gold)}, (), evidence)
