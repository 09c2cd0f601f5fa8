"""What `onnxpress run` does for each task: lines of texts to records, and which options belong to it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnxpress.cli.writing import WRITING, was_said

if TYPE_CHECKING:
    from onnxpress.runtime.generation.generator import Generator
    from onnxpress.runtime.tables import TextLine
    from onnxpress.runtime.tasks import TaskModel

Records = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answering:
    """How a bundle's lines are answered."""

    column: str
    """Where the text is, unless told otherwise."""
    second: str | None
    """Where the other text of a pair is."""
    answer: Callable[[list[TextLine]], Records]
    """Lines with texts to one record each, in order."""
    whole: bool = False
    """All lines are answered together; `answer` then gives them in an order of its own, under the key `line`."""
    writing: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of a model that writes: keyword arguments of its `generate`."""


# Options that make sense for some tasks only: the option, and the tasks.
_CLASSIFIERS = ("text-classification", "zero-shot-classification")
OPTIONS: dict[str, tuple[str, ...]] = {
    "prompt_name": ("feature-extraction",),
    "labels": _CLASSIFIERS,
    "hypothesis": _CLASSIFIERS,
    "multi_label": _CLASSIFIERS,
    "strategy": ("token-classification",),
    "top_k": ("fill-mask", "text-generation"),
    "prompt": ("text-generation",),
    **dict.fromkeys(WRITING, ("text-generation",)),
    "query": ("text-ranking", "question-answering"),
    "pair_column": (*_CLASSIFIERS, "text-ranking", "question-answering"),
}


def answering(model: TaskModel | Generator, arguments: argparse.Namespace) -> Answering:
    """How to answer lines with a model.

    Raises:
        InvalidInputError: an option does not belong to the model's task.
    """
    from onnxpress.runtime.errors import InvalidInputError

    task = model.settings.task
    for option, tasks in OPTIONS.items():
        if was_said(arguments, option) and task not in tasks:
            raise InvalidInputError(
                f"--{option.replace('_', '-')} is for {' and '.join(tasks)}; this bundle is for {task}"
            )
    return _ANSWERING[task](model, arguments)


def _embed(model: Any, arguments: argparse.Namespace) -> Answering:
    def answer(lines: list[TextLine]) -> Records:
        vectors = model.embed([line.text for line in lines], prompt_name=arguments.prompt_name)
        return [{"embedding": [_digits(value) for value in vector.tolist()]} for vector in vectors]

    return Answering("text", None, answer)


def _classify(model: Any, arguments: argparse.Namespace) -> Answering:
    from onnxpress.runtime.errors import InvalidInputError

    labels = [label.strip() for label in (arguments.labels or "").split(",") if label.strip()]
    if not labels and (arguments.hypothesis or arguments.multi_label):
        raise InvalidInputError("--hypothesis and --multi-label need --labels, a list of labels to choose from")

    def answer(lines: list[TextLine]) -> Records:
        if labels:
            options = {"hypothesis": arguments.hypothesis} if arguments.hypothesis else {}
            texts = [line.text for line in lines]
            found = model.zero_shot(texts, labels, multi_label=bool(arguments.multi_label), **options)
        else:
            found = model.classify([line.text if line.second is None else (line.text, line.second) for line in lines])
        return [
            {
                "label": entry.label,
                "score": _digits(entry.score),
                "scores": {name: _digits(score) for name, score in entry.scores.items()},
            }
            for entry in found
        ]

    return Answering("text", arguments.pair_column, answer)


def _rank(model: Any, arguments: argparse.Namespace) -> Answering:
    def score(lines: list[TextLine]) -> Records:
        scores = model.score([(line.second, line.text) for line in lines])
        return [{"score": _digits(float(value))} for value in scores]

    def rank(lines: list[TextLine]) -> Records:
        ranked = model.rank(arguments.query, [line.text for line in lines])
        return [
            {"line": lines[entry.index].number, "rank": place, "score": _digits(entry.score), "text": entry.text}
            for place, entry in enumerate(ranked, 1)
        ]

    if arguments.query:
        return Answering("text", None, rank, whole=True)
    return Answering("text", arguments.pair_column or "query", score)


def _tag(model: Any, arguments: argparse.Namespace) -> Answering:
    def answer(lines: list[TextLine]) -> Records:
        options = {"strategy": arguments.strategy} if arguments.strategy else {}
        found = model.tag([line.text for line in lines], **options)
        return [{"entities": [_plain(entity) for entity in entities]} for entities in found]

    return Answering("text", None, answer)


def _answer(model: Any, arguments: argparse.Namespace) -> Answering:
    def answer(lines: list[TextLine]) -> Records:
        questions = [arguments.query or line.second for line in lines]
        return [_plain(found) for found in model.answer(questions, [line.text for line in lines])]

    return Answering("context", None if arguments.query else arguments.pair_column or "question", answer)


def _fill(model: Any, arguments: argparse.Namespace) -> Answering:
    def answer(lines: list[TextLine]) -> Records:
        found = model.fill([line.text for line in lines], top_k=arguments.top_k or 5)
        return [{"fillings": [_plain(entry) for entry in entries]} for entries in found]

    return Answering("text", None, answer)


def _write(model: Any, arguments: argparse.Namespace) -> Answering:
    from onnxpress.cli.writing import writing_options

    options = writing_options(arguments)
    model.generate([], **options)  # a grammar that the model cannot follow is said once

    def answer(lines: list[TextLine]) -> Records:
        found = model.generate([line.text for line in lines], **options)
        return [{"text": entry.text, "finish_reason": entry.finish_reason} for entry in found]

    return Answering("text", None, answer, writing=options)


_ANSWERING: dict[str, Callable[[Any, argparse.Namespace], Answering]] = {
    "feature-extraction": _embed,
    "text-classification": _classify,
    "zero-shot-classification": _classify,
    "text-ranking": _rank,
    "token-classification": _tag,
    "question-answering": _answer,
    "fill-mask": _fill,
    "text-generation": _write,
}


def _plain(value: Any) -> Any:
    """A result as JSON data, without what is None."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return {
        name: _digits(entry) if isinstance(entry, float) else entry
        for name, entry in dataclasses.asdict(value).items()
        if entry is not None
    }


def _digits(value: float) -> float:
    """Seven digits say all there is in a float32."""
    return float(f"{value:.7g}")


def answer_each(plan: Answering, lines: Sequence[TextLine]) -> Iterator[dict[str, Any]]:
    """A record for each line, in order: what the model says, or under `error` why it says nothing.

    A text that the model cannot use takes nothing from the texts beside it.
    """
    from onnxpress.runtime.errors import InvalidInputError

    good = [line for line in lines if line.error is None]
    try:
        answers: dict[int, dict[str, Any]] = dict(zip((line.number for line in good), plan.answer(good), strict=True))
    except InvalidInputError:
        answers = {line.number: _answer_alone(plan, line) for line in good}
    for line in lines:
        yield {"line": line.number, **(answers[line.number] if line.error is None else {"error": line.error})}


def _answer_alone(plan: Answering, line: TextLine) -> dict[str, Any]:
    from onnxpress.runtime.errors import InvalidInputError

    try:
        return plan.answer([line])[0]
    except InvalidInputError as error:
        return {"error": str(error).removeprefix("text 0 ")}
