"""What the modules of all tasks share: evaluation data, the figures of a model, and how a missing library is named."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.evidence import Evidence

Figure = TypeVar("Figure", float, npt.NDArray[np.float64])


class Example(Protocol):
    """One row of evaluation data: what a model is given, and what people say is right."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts a model has to read for it."""

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The same as the model reads them: each a text, or a pair of texts that it reads together."""


def change_of(metric: str, before: Figure, after: Figure) -> Figure:
    """By how much a model's figure is above another's, in points; of perplexity, in percent."""
    if metric == "perplexity":
        return 100.0 * (after / before - 1.0)
    return after - before


def loss_of(metric: str, before: float, after: float) -> float:
    """What a model has lost against another: its change, or minus that where more is better."""
    change = change_of(metric, before, after)
    return change if metric == "perplexity" else -change


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
    rows: int = 0
    """How many examples the files have: more than are here where a sample was drawn. 0: not counted."""

    def change(self, before: Figure, after: Figure) -> Figure:
        """As `change_of`, of the primary figure."""
        return change_of(self.metric, before, after)

    def loss(self, before: float, after: float) -> float:
        """As `loss_of`, of the primary figure."""
        return loss_of(self.metric, before, after)

    def facts(self) -> dict[str, Any]:
        """What reports say of it, as JSON data."""
        return {
            "metric": self.metric,
            "label": self.label,
            "files": list(self.files),
            "sha256": self.sha256,
            "samples": len(self.examples),
            "rows": self.rows,
        }

    def subset(self, indices: Sequence[int]) -> Evaluation:
        """Some of the examples, in the order of `indices`, under a hash of their own."""
        digest = hashlib.sha256(f"{self.sha256}:{','.join(map(str, indices))}".encode()).hexdigest()
        examples = tuple(self.examples[index] for index in indices)
        return dataclasses.replace(self, examples=examples, sha256=digest)

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
    evidence: Evidence
    """What each example adds to the primary figure."""

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
