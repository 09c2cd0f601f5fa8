"""Accuracy of a model on data that people have labelled, in points from 0 to 100: one module a task, with its file
formats, its figures and what it needs of a model.

Figures come from the libraries of their fields, which `onnxpress[measure]` installs; only those of question-answering
and fill-mask, for which there is none, are worked out here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import (
    feature_extraction,
    fill_mask,
    question_answering,
    text_classification,
    text_generation,
    text_ranking,
    token_classification,
)
from onnxpress.runtime.evaluation.base import Evaluation, Example, Scores
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.intervals import Interval, paired_interval
from onnxpress.runtime.paths import sha256_of

__all__ = [
    "TASKS",
    "Evaluation",
    "Evidence",
    "Example",
    "Interval",
    "Scores",
    "evaluate",
    "paired_interval",
    "read_evaluation",
]


@dataclasses.dataclass(frozen=True)
class Task:
    """How one task is evaluated."""

    read: Callable[[Path, Sequence[str], str], Sequence[Any]]
    """File, the model's labels and their function to examples."""
    figure: Callable[[Sequence[Any]], tuple[str, str]]
    """Examples to the key of the primary figure and its name for a person."""
    ask: Callable[[Any, Sequence[Any]], Sequence[Any]]
    """Model and examples to what the model says."""
    score: Callable[[Any, Sequence[Any], Sequence[Any]], Scores]
    """Model, examples and what the model said to figures."""


_MODULES: dict[str, Any] = {
    "feature-extraction": feature_extraction,
    "text-classification": text_classification,
    "zero-shot-classification": text_classification,  # pairs of premise and hypothesis
    "token-classification": token_classification,
    "question-answering": question_answering,
    "text-ranking": text_ranking,
    "fill-mask": fill_mask,
    "text-generation": text_generation,
}
TASKS = {task: Task(module.read, module.figure, module.ask, module.score) for task, module in _MODULES.items()}


def read_evaluation(
    paths: Sequence[Path], task: str, labels: Sequence[str] = (), function: str = "softmax"
) -> Evaluation:
    """Read one or more files for a task; their rows are evaluated together.

    Args:
        paths: the files.
        task: a key of `TASKS`.
        labels: the names of the model's labels, in the order of its logits; files are checked against them.
        function: what makes scores of the logits (`LabelSettings`): with `sigmoid` and several labels, a text may have
            several; a model with one label predicts a number.

    Raises:
        InvalidInputError: a file cannot be used; the text says which line. Or the task has no evaluation.
    """
    if task not in TASKS:
        raise InvalidInputError(f"accuracy cannot be measured for the task {task!r}; it can for: {', '.join(TASKS)}")
    if not paths:
        raise InvalidInputError("no evaluation files are given")
    examples = tuple(example for path in paths for example in TASKS[task].read(path, labels, function))
    digests = "".join(sha256_of(path) for path in paths)
    metric, label = TASKS[task].figure(examples)
    files = tuple(path.name for path in paths)
    return Evaluation(task, examples, files, hashlib.sha256(digests.encode()).hexdigest(), metric, label)


def evaluate(model: Any, evaluation: Evaluation) -> Scores:
    """A model's figures on an evaluation.

    Args:
        model: one for the evaluation's task; which methods it must have say the protocols `Embeds`, `Classifies`,
            `LabelsWords`, `Answers`, `Ranks`, `Fills` and `Predicts` in the modules of the tasks.
        evaluation: what `read_evaluation` gave.

    Raises:
        InvalidInputError: a library that the figures need is not installed, or a text cannot be used.
    """
    task = TASKS[evaluation.task]
    return task.score(model, evaluation.examples, task.ask(model, evaluation.examples))
