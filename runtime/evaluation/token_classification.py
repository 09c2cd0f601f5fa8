"""Accuracy of taggers: whole entities for names and chunks, single words for parts of speech. Figures are seqeval's.

A file is CoNLL (a word a line, its tag last, an empty line between sentences) or JSONL with tokens and tags.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from onnxpress.runtime.data.lines import read_lines
from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.sampling import Sample
from onnxpress.runtime.data.stored import is_stored
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores, needs
from onnxpress.runtime.evaluation.drawing import draw, listed
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.labels import Labels
from onnxpress.runtime.evaluation.rows import JSON_SUFFIXES, Layout, Positions, find_columns, read_rows, texts_of


@dataclasses.dataclass(frozen=True)
class TaggedSentence:
    """Words and their tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def texts(self) -> tuple[str]:
        """The sentence with spaces between the words."""
        return (" ".join(self.words),)

    @property
    def inputs(self) -> tuple[tuple[str]]:
        """The same."""
        return (self.texts,)


class LabelsWords(Protocol):
    """What is needed of a model."""

    def label_words(self, sentences: list[list[str]], /) -> Sequence[Sequence[str]]:
        """A label for each word of each sentence, in order; `O` for words beyond the model's maximum."""


# The schemes seqeval's default mode knows, and the letters by which others say the same.
_PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
_SAME = {"L": "E", "U": "S", "M": "I"}


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Keys of an object, or columns of a dataset."""
    return find_columns(
        names, chosen, tokens=("tokens", "words"), tags=("tags", "ner_tags", "labels", "ner", "pos_tags")
    )


COLUMNS = {"tokens": "tokens", "tags": "tags"}
_LAYOUT = Layout(_by_name, lambda row: None, "tokens and tags", "", COLUMNS)


def read(
    sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None
) -> Sample[TaggedSentence]:
    """Tagged sentences from files or datasets.

    A tag is one of the model's, or one in another scheme for a type that the model has: B-LOC fits a model that only
    says LOC or I-LOC.

    Raises:
        InvalidInputError: a file cannot be used, or has a tag that the model has not; the text says which line.
    """

    def sentences(source: Source) -> Iterator[TaggedSentence]:
        tags = _Tags(labels, source.options.labels)
        in_rows = is_stored(source.path) or source.path.is_dir() or source.suffix in JSON_SUFFIXES
        if in_rows:
            return _sentences(source, tags)
        source.refuse_columns("CoNLL")
        return _conll_sentences(source, tags)

    drawn = draw(sources, samples, sentences, "sentences")
    if all(tag == "O" for sentence in drawn.items for tag in sentence.tags):
        raise InvalidInputError(
            f"all words of {listed(sources)} have the tag O; entities are needed to measure how they are found"
        )
    return drawn


def figure(sentences: Sequence[TaggedSentence]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    return ("f1", "entity F1 x 100") if _has_spans(sentences) else ("accuracy", "word accuracy, %")


def ask(model: LabelsWords, sentences: Sequence[TaggedSentence]) -> Sequence[Sequence[str]]:
    """The labels of each sentence's words."""
    return model.label_words([list(sentence.words) for sentence in sentences])


def score(model: LabelsWords, sentences: Sequence[TaggedSentence], labelled: Sequence[Sequence[str]]) -> Scores:
    """F1, precision and recall of entities, as conlleval scores them; of tags that mark no spans, as parts of speech,
    the share of words that are right.

    Raises:
        InvalidInputError: seqeval is not installed.
    """
    with needs("seqeval"):
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    found = [list(row) for row in labelled]
    predictions = tuple(map(tuple, found))
    gold = [list(sentence.tags) for sentence in sentences]
    if not _has_spans(sentences):
        return Scores({"accuracy": 100.0 * float(accuracy_score(gold, found))}, predictions, _words(gold, found))
    gold, found = _to_iobes(gold), _to_iobes(found)
    metrics = {
        "f1": f1_score(gold, found, zero_division=0),
        "precision": precision_score(gold, found, zero_division=0),
        "recall": recall_score(gold, found, zero_division=0),
    }
    return Scores({name: 100.0 * float(value) for name, value in metrics.items()}, predictions, _entities(gold, found))


def _words(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Evidence:
    right = (sum(map(operator.eq, *rows)) for rows in zip(gold, found, strict=True))
    return Evidence("share", tuple((float(count), float(len(row))) for count, row in zip(right, gold, strict=True)))


def _entities(gold: Sequence[list[str]], found: Sequence[list[str]]) -> Evidence:
    """F1 = 2 x entities right / (entities there + entities found), of all sentences together."""
    with needs("seqeval"):
        from seqeval.metrics.sequence_labeling import get_entities
    pairs = [(set(get_entities(there)), set(get_entities(said))) for there, said in zip(gold, found, strict=True)]
    rows = ((2.0 * len(there & said), float(len(there) + len(said))) for there, said in pairs)
    return Evidence("share", tuple(rows))


def _has_spans(sentences: Sequence[TaggedSentence]) -> bool:
    return any(tag == "O" or _PREFIXED.fullmatch(tag) for sentence in sentences for tag in sentence.tags)


def _to_iobes(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tags as seqeval reads them; one without a prefix is the inside of an entity."""

    def convert(tag: str) -> str:
        if match := _PREFIXED.fullmatch(tag):
            return f"{_SAME.get(match[1], match[1])}-{match[2]}"
        return tag if tag == "O" else f"I-{tag}"

    return [[convert(tag) for tag in row] for row in rows]


class _Tags:
    """Tags of a file to those of a model."""

    def __init__(self, labels: Sequence[str], given: Mapping[str, str]) -> None:
        self._labels = Labels(labels, given)
        self._types = {_type_of(name): _type_of(name) for name in labels if name != "O"}

    def get(self, place: str, tag: Any) -> str:
        if isinstance(tag, str) and self._labels.names and self._labels.find(tag) is None:
            match = _PREFIXED.fullmatch(tag)
            if tag == "O" or (match and match[2] in self._types):
                return tag
        return self._labels.get(place, tag)


def _type_of(name: str) -> str:
    match = _PREFIXED.fullmatch(name)
    return match[2] if match else name


def _conll_sentences(source: Source, tags: _Tags) -> Iterator[TaggedSentence]:
    words: list[tuple[str, str]] = []
    lines = read_lines(source.path, source.purpose)
    for number, raw in enumerate(itertools.chain(lines, [""]), 1):
        line = raw.removesuffix("\n")
        if line.startswith("-DOCSTART-"):
            continue
        # Not split(), which also splits at the spaces of Unicode that words contain.
        cells = line.split("\t") if "\t" in line.strip() else re.split(" +", line.strip(" "))
        if cells == [""] or not line.strip():
            if words:
                yield TaggedSentence(tuple(word for word, _ in words), tuple(tag for _, tag in words))
            words = []
            continue
        place = f"{source.path}, line {number}"
        if len(cells) < 2 or not cells[0].strip():
            raise InvalidInputError(f"{place}: expected a word and its tag, found {line.strip()[:40]!r}")
        words.append((cells[0].strip(" "), tags.get(place, cells[-1].strip(" "))))


def _sentences(source: Source, tags: _Tags) -> Iterator[TaggedSentence]:
    for row in read_rows(source, _LAYOUT):
        place, values = row.place, row.cells["tags"]
        words = texts_of(place, "tokens", row.cells["tokens"])
        if not isinstance(values, list) or len(values) != len(words):
            count = f"{len(values)} tags" if isinstance(values, list) else "no list of tags"
            raise InvalidInputError(f"{place}: {len(words)} tokens and {count}")
        if words:
            yield TaggedSentence(words, tuple(tags.get(place, value) for value in values))
