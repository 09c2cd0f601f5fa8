"""Accuracy of a model on data that people have labelled, in points from 0 to 100: one module a task, with its file
formats, its figures and what it needs of a model.

Figures come from the libraries of their fields, which `onnxpress[measure]` installs; only those of question-answering
and fill-mask, for which there is none, are worked out here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.runtime.data.options import DataOptions, Source
from onnxpress.runtime.data.reading import digest_of, displayed, resolve
from onnxpress.runtime.data.sampling import Sample
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
from onnxpress.runtime.manifest import LabelSettings

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
    "read_evaluation_for",
]


@dataclasses.dataclass(frozen=True)
class Task:
    """How one task is evaluated."""

    read: Callable[[Sequence[Source], Sequence[str], str, int | None], Sample[Any]]
    """Files, the model's labels and their function, and how many to keep, to examples."""
    columns: Mapping[str, str]
    """Names that a person may give to columns, and what the task calls these."""
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
_LABELLED = ("text-classification", "zero-shot-classification", "token-classification")
TASKS = {
    task: Task(module.read, module.COLUMNS, module.figure, module.ask, module.score)
    for task, module in _MODULES.items()
}


def read_evaluation(
    paths: Sequence[Path],
    task: str,
    labels: Sequence[str] = (),
    function: str = "softmax",
    options: DataOptions = DataOptions(),
) -> Evaluation:
    """Read one or more files for a task; their rows are evaluated together.

    Args:
        paths: the files; folders of texts and datasets on disk are as good (docs/evaluation.md).
        task: a key of `TASKS`.
        labels: the names of the model's labels, in the order of its logits; files are checked against them.
        function: what makes scores of the logits (`LabelSettings`): with `sigmoid` and several labels, a text may have
            several; a model with one label predicts a number.
        options: which columns, labels, split and how many examples.

    Raises:
        InvalidInputError: a file cannot be used; the text says which line. Or the task has no evaluation.
    """
    if task not in TASKS:
        raise InvalidInputError(f"accuracy cannot be measured for the task {task!r}; it can for: {', '.join(TASKS)}")
    if not paths:
        raise InvalidInputError("no evaluation files are given")
    options.check_columns(TASKS[task].columns, task)
    if options.labels and task not in _LABELLED:
        raise InvalidInputError(f"there are no labels in {task} to map; that is for: {', '.join(_LABELLED)}")
    sources = [resolve(Source(path, options)) for path in paths]
    drawn = TASKS[task].read(sources, labels, function, options.samples)
    metric, label = TASKS[task].figure(drawn.items)
    files = tuple(displayed(path, source) for path, source in zip(paths, sources, strict=True))
    return Evaluation(task, drawn.items, files, _digest(sources, options), metric, label, drawn.total)


def read_evaluation_for(
    paths: Sequence[Path], task: str, labels: LabelSettings | None, options: DataOptions = DataOptions()
) -> Evaluation:
    """The same for a model whose labels are known from its manifest; None: it has none."""
    if labels is None:
        return read_evaluation(paths, task, options=options)
    return read_evaluation(paths, task, labels.names, labels.function, options)


def _digest(sources: Sequence[Source], options: DataOptions) -> str:
    """Of what was read; of how, too, where that was said."""
    said = {name: value for name, value in dataclasses.asdict(options).items() if value}
    parts = [digest_of(source.path) for source in sources] + ([json.dumps(said, sort_keys=True)] if said else [])
    return hashlib.sha256("".join(parts).encode()).hexdigest()


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
