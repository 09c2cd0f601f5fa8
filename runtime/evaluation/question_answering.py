"""Accuracy of extractive question answering, as the official script of SQuAD 2.0 scores it.

Files are SQuAD's own JSON, of version 1.1 or 2.0, or JSONL with question, context and answers.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from onnxpress.runtime.data.lines import read_text
from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.sampling import Sample
from onnxpress.runtime.data.stored import is_stored
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores
from onnxpress.runtime.evaluation.drawing import draw
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.rows import JSON_SUFFIXES, Layout, Positions, find_columns, read_rows, shown, text_of

MAX_ANSWER_TOKENS = 30
"""The longest answer that counts, as in transformers' example scripts for SQuAD, with which models are published."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the text that may answer it, and the answers people gave; none if the text has no answer."""

    question: str
    context: str
    answers: tuple[str, ...]

    @property
    def texts(self) -> tuple[str]:
        """The context."""
        return (self.context,)

    @property
    def inputs(self) -> tuple[tuple[str, str]]:
        """The question and the context."""
        return ((self.question, self.context),)


class Answer(Protocol):
    """What a model says to one question."""

    @property
    def text(self) -> str:
        """A part of the context, or nothing if there is no answer."""


class Answers(Protocol):
    """What is needed of a model."""

    def answer(
        self, questions: list[str], contexts: list[str], /, *, allow_no_answer: bool, max_answer_tokens: int
    ) -> Sequence[Answer]:
        """The answer to each question from the context beside it, in order."""


def read(sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None) -> Sample[Question]:
    """Questions from files or datasets. An answer of which `normalize` leaves nothing does not count, as in the
    official script.

    Raises:
        InvalidInputError: a file cannot be used; the text says where.
    """
    return draw(sources, samples, _questions, "questions")


def _questions(source: Source) -> Iterator[Question]:
    for place, question, context, answers in _cells(source):
        yield Question(
            text_of(place, "the question", question),
            text_of(place, "the context", context),
            tuple(answer for answer in _texts_of_answers(place, answers) if normalize(answer)),
        )


def figure(questions: Sequence[Question]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    return "f1", "answer F1 x 100"


def ask(model: Answers, questions: Sequence[Question]) -> Sequence[Answer]:
    """The answer to each question. The model may say that there is none if that is so for any of the questions; SQuAD
    1.1 is scored without."""
    unanswerable = any(not question.answers for question in questions)
    return model.answer(
        [question.question for question in questions],
        [question.context for question in questions],
        allow_no_answer=unanswerable,
        max_answer_tokens=MAX_ANSWER_TOKENS,
    )


def score(model: Answers, questions: Sequence[Question], results: Sequence[Answer]) -> Scores:
    """F1 of the words of the answers, and how often all of them are right."""
    predictions = tuple(result.text for result in results)
    pairs = [(text, question.answers or ("",)) for text, question in zip(predictions, questions, strict=True)]
    f1 = [max(f1_of(text, answer) for answer in answers) for text, answers in pairs]
    exact = sum(any(normalize(text) == normalize(answer) for answer in answers) for text, answers in pairs)
    metrics = {"f1": 100.0 * sum(f1) / len(pairs), "exact_match": 100.0 * exact / len(pairs)}
    return Scores(metrics, predictions, Evidence.mean(f1))


# The three that follow: https://worksheets.codalab.org/rest/bundles/0x6b567e1cf2e041ec80d7098f031c5c9e/contents/blob/
# (evaluate-v2.0.py: normalize_answer, compute_exact, compute_f1), by Rajpurkar, Jia and Liang, 2018.


def normalize(answer: str) -> str:
    """Lower case, without ASCII punctuation, then without English articles, words parted by one space."""
    kept = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def f1_of(found: str, gold: str) -> float:
    """Harmonic mean of precision and recall of normalised words, each counted as often as it occurs; if either text
    has none, 1 if neither has, else 0."""
    found_words, gold_words = normalize(found).split(), normalize(gold).split()
    if not found_words or not gold_words:
        return float(found_words == gold_words)
    common = (collections.Counter(found_words) & collections.Counter(gold_words)).total()
    # 2pr / (p + r) with p = common / found, r = common / gold
    return 2 * common / (len(found_words) + len(gold_words))


Cells = tuple[str, Any, Any, Any]
"""Place, question, context, answers."""


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Keys of an object, or columns of a dataset."""
    return find_columns(
        names, chosen, question=("question", "query"), context=("context", "passage"), answers=("answers", "answer")
    )


COLUMNS = {"question": "question", "context": "context", "answers": "answers"}
_LAYOUT = Layout(_by_name, lambda row: None, "question, context and answers", "", COLUMNS)


def _cells(source: Source) -> Iterator[Cells]:
    path = source.path
    if not is_stored(path) and not path.is_dir() and source.suffix not in JSON_SUFFIXES:
        raise InvalidInputError(
            f"{path}: questions are read from .jsonl (question, context, answers), SQuAD's .json or a dataset"
        )
    data = _squad(path) if source.suffix == ".json" else None
    if data is not None:
        source.refuse_columns("SQuAD's JSON")
        yield from _squad_rows(path, data)
        return
    for row in read_rows(source, _LAYOUT):
        yield row.place, row.cells["question"], row.cells["context"], row.cells["answers"]


def _squad(path: Path) -> Any | None:
    """What is under `data` in a file in SQuAD's own form, which is one JSON value; None of JSONL."""
    text = read_text(path)
    if not text.strip():
        return None
    start = len(text) - len(text.lstrip())
    try:
        first, end = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: not JSON ({error})") from error
    is_squad = isinstance(first, dict) and "data" in first and not text[end:].strip()
    return first["data"] if is_squad else None


def _squad_rows(path: Path, data: Any) -> Iterator[Cells]:
    for article_place, article in _objects(f"{path}: data", data):
        for place, paragraph in _objects(f"{article_place}.paragraphs", article.get("paragraphs")):
            for question_place, item in _objects(f"{place}.qas", paragraph.get("qas")):
                yield question_place, item.get("question"), paragraph.get("context"), item.get("answers")


def _objects(place: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items of a list, which must be objects, each with its place in the file."""
    if not isinstance(value, list):
        raise InvalidInputError(f"{place} must be a list")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidInputError(f"{place}[{index}] must be an object")
        yield f"{place}[{index}]", item


def _texts_of_answers(place: str, answers: Any) -> list[str]:
    """Answers as lists of texts, as in SQuAD's JSON (objects with a text) or as on the hub (an object with texts)."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    if not isinstance(answers, list):
        raise InvalidInputError(f"{place}: the answers must be a list of texts ([] if there is none)")
    texts = []
    for answer in answers:
        text = answer.get("text") if isinstance(answer, dict) else answer
        if not isinstance(text, str):
            raise InvalidInputError(f"{place}: an answer must be text, not {shown(text)}")
        texts.append(text)
    return texts
