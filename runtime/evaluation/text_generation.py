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
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.rows import read_text
from onnxpress.runtime.generation.perplexity import perplexity_from


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

    def log_likelihoods(self, texts: Sequence[str]) -> Sequence[tuple[float, int]]:
        """Of each window of the texts: the log likelihood of its tokens that count, and how many these are."""


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


def ask(model: Predicts, passages: Sequence[Passage]) -> Sequence[tuple[float, int]]:
    """The log likelihoods of all windows."""
    return model.log_likelihoods([passage.text for passage in passages])


def score(model: Predicts, passages: Sequence[Passage], found: Sequence[tuple[float, int]]) -> Scores:
    """Perplexity; there are no answers to compare."""
    evidence = Evidence("perplexity", tuple((likelihood, float(tokens)) for likelihood, tokens in found))
    return Scores({"perplexity": perplexity_from(found)}, (), evidence)
