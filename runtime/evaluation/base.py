"""What the modules of all tasks share: evaluation data, the figures of a model, and how a missing library is named."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol

from onnxpress.runtime.errors import InvalidInputError


class Example(Protocol):
    """One row of evaluation data: what a model is given, and what people say is right."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts a model has to read for it."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Examples of one task, read and ready, and what their figure is called in a report."""

    task: str
    examples: tuple[Example, ...]
    """All of one class: the dataclass of the task's module."""
    files: tuple[str, ...]
    """Names of the files, without folders."""
    sha256: str
    """Of the files' own hashes, in order."""
    metric: str
    """Key of the primary figure in `Scores.metrics`."""
    label: str
    """The same for a person."""

    def loss(self, before: float, after: float) -> float:
        """What a model has lost against another, in points; of perplexity, of which less is better, in percent."""
        if self.metric == "perplexity":
            return 100.0 * (after / before - 1.0)
        return before - after

    def amount(self, lost: float, form: str = "g") -> str:
        """A loss in words: 1 point, 1.31 points, 0.35 % of perplexity."""
        if self.metric == "perplexity":
            return f"{lost:{form}} % of perplexity"
        return f"{lost:{form}} point{'' if lost == 1 else 's'}"

    @property
    def texts(self) -> list[str]:
        """Every text a model reads, in order: sentences, contexts, documents."""
        return [text for example in self.examples for text in example.texts]


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well a model does on an evaluation, and what it said."""

    metrics: dict[str, float]
    """Figures in points, 100 is perfect; the primary one first."""
    predictions: tuple[object, ...]
    """What the model said for each example, in order, so that two models can be compared with ==. Empty for
    feature-extraction, whose vectors are compared otherwise."""

    @property
    def primary(self) -> float:
        """The figure by which variants are judged."""
        return next(iter(self.metrics.values()))


@contextlib.contextmanager
def needs(package: str) -> Iterator[None]:
    """Around the import of a library that only accuracy figures need.

    Raises:
        InvalidInputError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise InvalidInputError(f"accuracy needs {package}; install onnxpress[measure]") from error
