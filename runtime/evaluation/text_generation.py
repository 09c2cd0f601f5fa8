"""text-generation: the perplexity of texts, as `runtime/generation/perplexity.py` defines it. Less is better.

A file is plain text. Each file is one text, tokenized whole, special tokens not added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores
from onnxpress.runtime.evaluation.rows import read_text


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text to predict."""

    text: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Its lines of some length, to time a model on."""
        return tuple(line for line in self.text.splitlines() if len(line) > 20)


class Predicts(Protocol):
    """What is needed of a model."""

    def perplexity(self, texts: Sequence[str]) -> float:
        """Of all texts together."""


def read(path: Path, labels: Sequence[str], function: str) -> list[Passage]:
    """The text of a file.

    Raises:
        InvalidInputError: it cannot be read, or there is nothing in it to predict.
    """
    text = read_text(path)
    if len(text.split()) < 2:
        raise InvalidInputError(f"the evaluation file {path} has less than two words; perplexity needs a text")
    return [Passage(text)]


def figure(passages: Sequence[Passage]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    return "perplexity", "perplexity"


def score(model: Predicts, passages: Sequence[Passage]) -> Scores:
    """Perplexity; there are no answers to compare."""
    return Scores({"perplexity": model.perplexity([passage.text for passage in passages])}, ())
