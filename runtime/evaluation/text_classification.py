"""Accuracy of text classifiers, also on pairs of texts as in natural language inference, and of models that give a
text a number. Figures are scikit-learn's and scipy's.

A file has the columns text and label, for pairs a second text between them, under the names common in public data or
in this order. A label is a name of the model's or its index; of a multi-label model several, as `a|b` or a JSON list;
of a model with one label a number.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.data.folders import labelled_text_files
from onnxpress.runtime.data.lines import read_text
from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.sampling import Sample
from onnxpress.runtime.data.stored import is_stored
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores, needs
from onnxpress.runtime.evaluation.correlation import pearson, spearman
from onnxpress.runtime.evaluation.drawing import draw, listed
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.labels import Labels
from onnxpress.runtime.evaluation.rows import (
    Layout,
    Positions,
    Row,
    find_columns,
    is_number,
    read_rows,
    shown,
    text_of,
)

THRESHOLD = 0.5
"""The score from which a multi-label model gives a label to a text."""

Kind = Literal["one label", "several labels", "number"]


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, and what is right."""

    text: str
    pair: str | None
    gold: str | tuple[str, ...] | float
    """The label; of a multi-label model all of them, in the model's order; of a regression model the number."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or both."""
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def inputs(self) -> tuple[tuple[str, ...]]:
        """The text, or both together."""
        return (self.texts,)


class Classification(Protocol):
    """What a model says about one text."""

    @property
    def label(self) -> str:
        """The best label."""

    @property
    def score(self) -> float:
        """Its score; of a model with one label, the number it predicts."""

    @property
    def scores(self) -> Mapping[str, float]:
        """Every label's score."""


class Classifies(Protocol):
    """What is needed of a model."""

    def classify(self, texts: list[str | tuple[str, str]], /) -> Sequence[Classification]:
        """What it says about each text or pair, in order."""


# Names that go together; a name of the first text alone may mean other things beside other columns.
PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "document"),
    ("query", "passage"),
    ("first", "second"),
    ("s1", "s2"),
)
_FIRST_ONLY = (
    "text",
    "sentence",
    "review",
    "content",
    "comment",
    "tweet",
    "utterance",
    "query",
    "question",
    "document",
)
FIRST = (*_FIRST_ONLY, *(first for first, _ in PAIRS if first not in _FIRST_ONLY))
_SECOND = tuple(second for _, second in PAIRS if second not in ("sentence", "passage", "document"))
_LABEL = (
    "gold_label",
    "label",
    "labels",
    "sentiment",
    "class",
    "category",
    "intent",
    "emotion",
    "target",
    "gold",
    "rating",
    "score",
    "similarity",
    "similarity_score",
    "relatedness_score",
)


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Columns of a header. Beside a text that was chosen by name, only the plainest names are a second one."""
    pairs = (("text", "text_pair"), ("premise", "hypothesis")) if "text" in chosen else PAIRS
    for first, second in pairs:
        if found := find_columns(names, chosen, text=(first,), pair=(second,), label=_LABEL):
            return found
    if not chosen and (found := find_columns(names, chosen, text=FIRST, pair=_SECOND, label=_LABEL)):
        return found
    return find_columns(names, chosen, text=FIRST, label=_LABEL) if "pair" not in chosen else None


def _by_order(row: Sequence[str]) -> Positions | None:
    """Columns without a header: text, label or text, text, label."""
    if len(row) < 2:
        return None
    return {"text": 0, "label": 1} if len(row) == 2 else {"text": 0, "pair": 1, "label": 2}


def _number_by_order(row: Sequence[str]) -> Positions | None:
    """The same where the label is a number: with two texts it may come first, as in the files of the STS tasks."""
    if len(row) >= 3 and is_number(row[0]) and not is_number(row[2]):
        return {"label": 0, "text": 1, "pair": 2}
    found = _by_order(row)
    return found if found and is_number(row[found["label"]]) else None


_NAMES = "text and label (text_pair for a second text)"
_ORDER = "text, label or text, text, label"
COLUMNS = {"text": "text", "text_pair": "pair", "label": "label", "premise": "text", "hypothesis": "pair"}
_LAYOUT = Layout(_by_name, _by_order, _NAMES, _ORDER, COLUMNS)
_NUMBER_LAYOUT = Layout(_by_name, _number_by_order, _NAMES, _ORDER, COLUMNS)


def read(sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None) -> Sample[LabelledText]:
    """Labelled texts from TSV, CSV, JSONL, datasets, or folders of texts with one folder for each label. Rows on which
    the annotators did not agree, whose label is `-` or -1 in public data, are left out.

    Raises:
        InvalidInputError: a file cannot be used, or has a label that the model has not; the text says which line.
    """
    kind = _kind_of(labels, function)
    if kind == "number" and any(source.options.labels for source in sources):
        raise InvalidInputError("the model predicts a number for a text, so there are no labels to map; leave them out")

    def examples(source: Source) -> Iterator[LabelledText]:
        known = Labels(labels, source.options.labels)
        for row in _rows(source, _NUMBER_LAYOUT if kind == "number" else _LAYOUT):
            if kind == "number" or not _is_undecided(row, known):
                yield _example(row, kind, known)

    drawn = draw(sources, samples, examples, "labelled texts")
    if kind == "several labels" and not any(example.gold for example in drawn.items):
        raise InvalidInputError(f"no text of {listed(sources)} has a label")
    if kind == "number" and len({example.gold for example in drawn.items}) < 2:
        raise InvalidInputError(
            f"all texts of {listed(sources)} have the same number; a correlation needs different ones"
        )
    return drawn


def _rows(source: Source, layout: Layout) -> Iterator[Row]:
    if source.path.is_dir() and not is_stored(source.path):
        source.refuse_columns("a folder of texts")
        for path, label in labelled_text_files(source):
            yield Row(str(path), {"text": read_text(path), "label": label})
    else:
        yield from read_rows(source, layout)


def _kind_of(labels: Sequence[str], function: str) -> Kind:
    """What a model with these labels and this function (`LabelSettings`) says about a text.

    Raises:
        InvalidInputError: several numbers, for which there is no figure here.
    """
    if len(labels) == 1:
        return "number"
    if function == "identity":
        raise InvalidInputError(
            f"the model predicts {len(labels)} numbers for a text; accuracy is measured for one number or for labels"
        )
    return "several labels" if function == "sigmoid" and labels else "one label"


def figure(examples: Sequence[LabelledText]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    gold = examples[0].gold
    if isinstance(gold, float):
        return "spearman", "Spearman correlation x 100"
    return "accuracy", "accuracy, %" if isinstance(gold, str) else "accuracy (all labels of a text right), %"


def ask(model: Classifies, examples: Sequence[LabelledText]) -> Sequence[Classification]:
    """What it says about each text or pair."""
    return model.classify([_input(example) for example in examples])


def score(model: Classifies, examples: Sequence[LabelledText], results: Sequence[Classification]) -> Scores:
    """One label: accuracy and macro F1. Several labels: how often exactly the right ones have a score of at least
    `THRESHOLD`, and macro F1. Numbers: Spearman's and Pearson's correlations, and no predictions, which are never
    equal.

    Raises:
        InvalidInputError: a library is not installed.
    """
    gold: list[Any] = [example.gold for example in examples]
    if isinstance(gold[0], float):
        found = [result.score for result in results]
        evidence = Evidence("rank correlation", tuple(zip(map(float, found), gold, strict=True)))
        return Scores({"spearman": spearman(found, gold), "pearson": pearson(found, gold)}, (), evidence)
    if isinstance(gold[0], str):
        return _score_one([result.label for result in results], gold)
    return _score_several([result.scores for result in results], gold)


def _score_one(found: list[str], gold: list[Any]) -> Scores:
    with needs("scikit-learn"):
        from sklearn.metrics import accuracy_score, f1_score
    macro = f1_score(gold, found, average="macro", zero_division=0)
    metrics = {"accuracy": 100.0 * float(accuracy_score(gold, found)), "macro_f1": 100.0 * float(macro)}
    return Scores(metrics, tuple(found), Evidence.mean(map(operator.eq, gold, found)))


def _score_several(scores: Sequence[Mapping[str, float]], gold: list[Any]) -> Scores:
    with needs("scikit-learn"):
        from sklearn.metrics import accuracy_score, f1_score
    # A model may give the scores of each text in another order.
    names = list(scores[0])
    found = [{name for name in names if row[name] >= THRESHOLD} for row in scores]
    truth, answers = _indicators(gold, names), _indicators(found, names)
    # As with one label: the mean over the labels that occur, in the file or in what the model says.
    occurring = np.flatnonzero((truth | answers).any(axis=0)).tolist()
    macro = f1_score(truth, answers, average="macro", labels=occurring, zero_division=0) if occurring else 1.0
    metrics = {"accuracy": 100.0 * float(accuracy_score(truth, answers)), "macro_f1": 100.0 * float(macro)}
    evidence = Evidence.mean((truth == answers).all(axis=1).tolist())
    return Scores(metrics, tuple(tuple(sorted(row)) for row in found), evidence)


def _indicators(rows: Sequence[Any], names: list[str]) -> npt.NDArray[np.int64]:
    """1 where a row has a label: int64 [rows, names]."""
    return np.array([[name in row for name in names] for row in rows], np.int64)


def _input(example: LabelledText) -> str | tuple[str, str]:
    return example.text if example.pair is None else (example.text, example.pair)


def _is_undecided(row: Row, known: Labels) -> bool:
    label = row.cells["label"]
    return label in ("-", "-1", -1) and known.find(label) is None


def _example(row: Row, kind: Kind, known: Labels) -> LabelledText:
    text = text_of(row.place, "the text", row.cells["text"])
    pair = row.cells.get("pair")
    if pair is not None:
        pair = text_of(row.place, "the second text", pair)
    label = row.cells["label"]
    gold: str | tuple[str, ...] | float
    if kind == "number":
        if not is_number(label):
            raise InvalidInputError(f"{row.place}: the label {shown(label)} is not a number")
        gold = float(label)
    elif kind == "several labels":
        named = {known.get(row.place, item) for item in _several(row.place, label)}
        gold = tuple(name for name in known.names if name in named)
    else:
        gold = known.get(row.place, label)
    return LabelledText(text, pair, gold)


def _several(place: str, cell: Any) -> list[Any]:
    """The labels in one cell: `a|b`, a JSON list, or nothing."""
    if isinstance(cell, str):
        if not cell.strip().startswith("["):
            return [item for item in cell.split("|") if item.strip()]
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{place}: the labels {cell[:40]!r} are no JSON list ({error})") from error
    return cell if isinstance(cell, list) else [cell]
