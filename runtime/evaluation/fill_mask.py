"""Accuracy of masked language models: is the right word among the first that fill a gap?

A file has the columns text and target; the text has one gap, written as [MASK], <mask> or as the model writes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.sampling import Sample
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores
from onnxpress.runtime.evaluation.drawing import draw
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.rows import Layout, Positions, find_columns, read_rows, text_of

TOP = 5
GAP = re.compile(r"\[MASK\]|<mask>")


@dataclasses.dataclass(frozen=True)
class Gap:
    """A text with one gap, and the word that belongs there."""

    text: str
    target: str
    place: str
    """File and line, for an error that only shows once the model's own mask is known."""

    @property
    def texts(self) -> tuple[str]:
        """The text."""
        return (self.text,)

    @property
    def inputs(self) -> tuple[tuple[str]]:
        """The text."""
        return ((self.text,),)

    def masked(self, mask_token: str) -> str:
        """The text with the model's own mask in the gap.

        Raises:
            InvalidInputError: it has no gap, or several.
        """
        # A model's own mask may be written otherwise than the two that everybody knows.
        count = self.text.count(mask_token)
        text = self.text if count else GAP.sub(lambda _: mask_token, self.text)
        if text.count(mask_token) != 1:
            raise InvalidInputError(
                f"{self.place}: the text has {text.count(mask_token) or 'no'} gaps; give one, as {mask_token} or [MASK]"
            )
        return text


class Filling(Protocol):
    """One proposal for a gap."""

    @property
    def token(self) -> str:
        """The token as text."""

    @property
    def token_id(self) -> int:
        """Its id."""


class Fills(Protocol):
    """What is needed of a model."""

    @property
    def mask_token(self) -> str:
        """What marks a gap."""

    def fill(self, texts: list[str], /, *, top_k: int) -> Sequence[Sequence[Filling]]:
        """For the gap of each text, in order, the best proposals, the best first."""

    def token_id_of(self, text: str, /) -> int | None:
        """The id of a text that is one token."""


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Columns of a header."""
    return find_columns(
        names,
        chosen,
        text=("text", "sentence", "masked_text", "masked_sentence", "masked"),
        target=("target", "answer", "label", "token", "word", "obj_label"),
    )


def _by_order(row: Sequence[str]) -> Positions | None:
    """Columns without a header."""
    return {"text": 0, "target": 1} if len(row) >= 2 else None


COLUMNS = {"text": "text", "target": "target"}
_LAYOUT = Layout(_by_name, _by_order, "text and target", "text, target", COLUMNS)


def read(sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None) -> Sample[Gap]:
    """Texts with one gap from TSV, CSV, JSONL or datasets.

    Raises:
        InvalidInputError: a file cannot be used; the text says which line.
    """
    return draw(sources, samples, _gaps, "texts")


def _gaps(source: Source) -> Iterator[Gap]:
    for row in read_rows(source, _LAYOUT):
        text = text_of(row.place, "the text", row.cells["text"])
        count = len(GAP.findall(text))
        if count > 1:
            raise InvalidInputError(f"{row.place}: the text has {count} gaps; give one")
        yield Gap(text, text_of(row.place, "the target", row.cells["target"]), row.place)


def figure(gaps: Sequence[Gap]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    return "top_1", "first proposal right, %"


def ask(model: Fills, gaps: Sequence[Gap]) -> Sequence[Sequence[Filling]]:
    """The first proposals for each gap.

    Raises:
        InvalidInputError: a text has no gap, or several.
    """
    return model.fill([gap.masked(model.mask_token) for gap in gaps], top_k=TOP)


def score(model: Fills, gaps: Sequence[Gap], filled: Sequence[Sequence[Filling]]) -> Scores:
    """How often the target is the first proposal, and among the first five. A target that is not one token of the
    model is never right.

    Raises:
        InvalidInputError: none of the targets is one token.
    """
    targets = [_ids_of(model, gap.target) for gap in gaps]
    if not any(targets):
        raise InvalidInputError(f"no target is one token of the model, the first of them {gaps[0].target!r}")
    first = [row[0].token_id in ids for row, ids in zip(filled, targets, strict=True)]
    top = sum(any(item.token_id in ids for item in row) for row, ids in zip(filled, targets, strict=True))
    metrics = {"top_1": 100.0 * sum(first) / len(gaps), f"top_{TOP}": 100.0 * top / len(gaps)}
    return Scores(metrics, tuple(row[0].token for row in filled), Evidence.mean(first))


def _ids_of(model: Fills, target: str) -> set[int]:
    """A word's tokens: many vocabularies hold it twice, at the start of a text and after a space."""
    word = target.strip()
    return {found for found in (model.token_id_of(word), model.token_id_of(f" {word}")) if found is not None}
