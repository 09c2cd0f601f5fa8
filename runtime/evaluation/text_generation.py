"""text-generation: the perplexity of texts, as `runtime/generation/perplexity.py` defines it. Less is better.

A text is tokenized whole, special tokens not added. A plain file is one text, of a very large one blocks are
(`runtime/data/lines.py`); in tables, JSONL and datasets each row is one, in a folder each file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from onnxpress.runtime.data.folders import text_files
from onnxpress.runtime.data.lines import parts, read_passages
from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.sampling import Sample
from onnxpress.runtime.data.stored import is_stored
from onnxpress.runtime.evaluation.base import Scores
from onnxpress.runtime.evaluation.drawing import draw
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.rows import JSON_SUFFIXES, Layout, Positions, find_columns, read_rows, text_of
from onnxpress.runtime.generation.perplexity import perplexity_from


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text to predict."""

    text: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Its lines of some length, to time a model on."""
        return tuple(line for line in self.text.splitlines() if len(line) > 20)

    @property
    def inputs(self) -> tuple[tuple[str]]:
        """The whole text."""
        return ((self.text,),)


class Predicts(Protocol):
    """What is needed of a model."""

    def log_likelihoods(self, texts: Sequence[str]) -> Sequence[tuple[float, int]]:
        """Of each window of the texts: the log likelihood of its tokens that count, and how many these are."""


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Columns of a header."""
    return find_columns(names, chosen, text=("text", "content", "document", "sentence", "passage"))


COLUMNS = {"text": "text"}
_LAYOUT = Layout(_by_name, lambda row: None, "text", "text", COLUMNS, bare="text")
_TWO_WORDS = re.compile(r"\S\s+\S")
_SAMPLES = 4096
_MOST_CHARACTERS = 4_000_000
"""Of all texts together unless a number of them is asked for: a million tokens, which take a CPU many minutes."""


def read(sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None) -> Sample[Passage]:
    """Texts from files, folders of texts or datasets; those without two words are left out.

    Raises:
        InvalidInputError: one cannot be read, or there is nothing in it to predict.
    """
    drawn = draw(sources, samples or _SAMPLES, _passages, "text of at least two words, which perplexity needs")
    characters = sum(len(passage.text) for passage in drawn.items)
    if samples is not None or characters <= _MOST_CHARACTERS:
        return drawn
    count = max(1, len(drawn.items) * _MOST_CHARACTERS // characters)
    kept = [drawn.items[index * len(drawn.items) // count] for index in range(count)]
    return Sample(tuple(kept), drawn.total)


def _passages(source: Source) -> Iterator[Passage]:
    for text in _texts(source):
        if _TWO_WORDS.search(text):
            yield Passage(text)


def _texts(source: Source) -> Iterator[str]:
    if source.path.is_dir() and not is_stored(source.path):
        source.refuse_columns("a folder of texts")
        for path in text_files(source):
            for text in read_passages(path, source.purpose):
                yield from parts(text)
    elif is_stored(source.path) or source.suffix in (*JSON_SUFFIXES, ".csv", ".tsv"):
        for row in read_rows(source, _LAYOUT):
            yield from parts(text_of(row.place, "the text", row.cells["text"]))
    else:
        source.refuse_columns("plain text")
        yield from read_passages(source.path, source.purpose)


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
