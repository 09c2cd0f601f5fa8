"""Calibration data from files, folders and datasets: texts, or pairs of texts for models that read two.

Labels are not looked at, except where a table has no header: then it has to be one that accuracy could be measured on.
What the texts become is in encoder_feeds.py and calibration.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from onnxpress.exporter.calibration import DECODER_SAMPLES, ENCODER_SAMPLES, SYNTHETIC, Calibration
from onnxpress.exporter.encoder_feeds import PAIRED
from onnxpress.runtime.data.folders import text_files
from onnxpress.runtime.data.lines import BLOCK, parts, read_lines, read_passages, read_text
from onnxpress.runtime.data.options import DataOptions, Source
from onnxpress.runtime.data.reading import displayed, resolve
from onnxpress.runtime.data.sampling import sample
from onnxpress.runtime.data.stored import is_stored
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import TASKS
from onnxpress.runtime.evaluation.rows import (
    JSON_SUFFIXES,
    Layout,
    Positions,
    Row,
    find_columns,
    first_row,
    read_rows,
    text_of,
    texts_of,
)
from onnxpress.runtime.evaluation.text_classification import FIRST, PAIRS

_TABLES = (".csv", ".tsv")
_FIRST = (*FIRST, "masked_text", "masked_sentence", "tokens", "words")
_PAIRS = (*PAIRS, ("question", "context"), ("query", "positive"))
_MOST_SHOWN = 20
_COLUMNS = {"text": "text", "text_pair": "pair"}

Input = tuple[str, ...]
"""A text, or two that are read together."""


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Columns of a header, or keys."""
    for first, second in _PAIRS if not chosen else (("text", "text_pair"),):
        if found := find_columns(names, chosen, text=(first,), pair=(second,)):
            return found
    return find_columns(names, chosen, text=_FIRST) if "pair" not in chosen else None


_LAYOUT = Layout(_by_name, lambda row: None, "text (text_pair for a second text)", "text", _COLUMNS, bare="text")


def read_calibration(
    data: Sequence[Path] | Literal["synthetic"],
    task: str,
    options: DataOptions = DataOptions(),
    labels: Sequence[str] = (),
    function: str = "softmax",
) -> Calibration:
    """Read what a person gave to calibrate on.

    JSONL, CSV, TSV and datasets give a text, or a pair, for each row; in a folder each file is a text. Another file is
    one text for a decoder, and a text on each line for an encoder.

    Args:
        data: files and folders; or the word for random tokens.
        task: of the model.
        options: which columns, and how many texts.
        labels: of the model, for tables without a header.
        function: what makes scores of its logits, for these, too.

    Raises:
        InvalidInputError: something cannot be read, or there is no text in it; the sentence says which.
    """
    if data == SYNTHETIC:
        return Calibration((), (), hashlib.sha256(SYNTHETIC.encode()).hexdigest(), 0)
    options.check_columns(_COLUMNS, "calibration data")
    given = [Path(path) for path in data]
    sources = [resolve(Source(path, options, "calibration")) for path in given]

    beyond: list[int] = []

    def stream() -> Iterator[Input]:
        for source in sources:
            found = False
            for item in _inputs(source, task, labels, function, beyond):
                if all(text.strip() for text in item):
                    found = True
                    yield from [item] if task in PAIRED else ((text,) for text in item)
            if not found:
                raise InvalidInputError(f"{source} has no text in it; {_enough(task)}")

    drawn = sample(stream(), options.samples or (DECODER_SAMPLES if task == "text-generation" else ENCODER_SAMPLES))
    digest = hashlib.sha256()
    for item in drawn.items:
        for text in item:
            encoded = text.encode("utf-8", "replace")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    files = tuple(displayed(path, source) for path, source in zip(given, sources, strict=True))
    return Calibration(drawn.items, files, digest.hexdigest(), drawn.total + sum(beyond))


def _enough(task: str) -> str:
    return "give some 30,000 tokens of text" if task == "text-generation" else f"give some {ENCODER_SAMPLES} texts"


def _inputs(source: Source, task: str, labels: Sequence[str], function: str, beyond: list[int]) -> Iterator[Input]:
    """What one source has to read, longer texts in parts (of decoders) or their beginning (of encoders). How many more
    there are than are given is added to `beyond`."""
    decoder = task == "text-generation"
    if source.path.is_dir() and not is_stored(source.path):
        source.refuse_columns("a folder of texts")
        for path in text_files(source):
            yield from ((part,) for part in _cut(read_text(path, source.purpose), decoder))
    elif is_stored(source.path) or source.suffix in JSON_SUFFIXES or _has_header(source, decoder):
        for row in read_rows(source, _LAYOUT):
            for item in _of_row(row):
                if decoder:
                    yield from ((part,) for text in item for part in parts(text))
                else:
                    yield tuple(text[:BLOCK] for text in item)
    elif not decoder and (source.suffix in _TABLES or (task == "token-classification" and _is_conll(source, labels))):
        yield from _labelled(source, task, labels, function, beyond)
    else:
        source.refuse_columns("plain text")
        if decoder:
            yield from ((text,) for text in read_passages(source.path, source.purpose))
        else:
            yield from ((line.rstrip("\n"),) for line in read_lines(source.path, source.purpose, longest=BLOCK))


def _has_header(source: Source, needed: bool) -> bool:
    """Whether this is a table whose first line names its text, or has to."""
    if source.suffix not in _TABLES:
        return False
    return needed or bool(source.options.columns) or _by_name(_names(source), {}) is not None


def _names(source: Source) -> list[str]:
    return [name.strip().lower() for name in first_row(source)]


def _is_conll(source: Source, labels: Sequence[str]) -> bool:
    """Whether the first word of a file has one of the model's tags."""
    lines = (line.split() for line in read_lines(source.path, source.purpose, longest=BLOCK))
    first = next((cells for cells in lines if cells and cells[0] != "-DOCSTART-"), [])
    return len(first) > 1 and first[-1] in labels


def _labelled(source: Source, task: str, labels: Sequence[str], function: str, beyond: list[int]) -> Iterator[Input]:
    """What a model reads of the examples of an evaluation file."""
    try:
        drawn = TASKS[task].read([source], labels, function, source.options.samples)
    except InvalidInputError as error:
        there = ", ".join(_names(source)[:_MOST_SHOWN])
        raise InvalidInputError(
            f"{source} has no column text (it begins with: {there[:200]}); --calibration-columns says which it is. Nor "
            f"can it be read as an evaluation file: {error}"
        ) from error
    beyond.append(drawn.total - len(drawn.items))
    return (item for example in drawn.items for item in example.inputs)


def _cut(text: str, decoder: bool) -> Iterator[str]:
    if decoder:
        yield from parts(text)
    else:
        yield text[:BLOCK]


def _of_row(row: Row) -> Iterator[Input]:
    first = row.cells["text"]
    text = " ".join(texts_of(row.place, "tokens", first)) if isinstance(first, list) else first
    text = text_of(row.place, "the text", text)
    second: Any = row.cells.get("pair")
    if second is None:
        yield (text,)
        return
    for item in second if isinstance(second, list) else [second]:
        yield text, text_of(row.place, "the second text", item)
