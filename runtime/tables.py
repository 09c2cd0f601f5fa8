"""Rows of data files: text lines, CSV, TSV and JSONL, read with line numbers so that errors can name them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from onnxpress.runtime.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class TextLine:
    """One input text, or the reason it cannot be read."""

    number: int
    text: str | None
    error: str | None = None


def read_texts(lines: BinaryIO | Iterable[bytes], form: str, column: str) -> Iterator[TextLine]:
    """Texts from lines of bytes.

    Args:
        lines: a binary file or any iterable of lines.
        form: `text` (each line is a text), `jsonl` (each line an object or a string), `csv` or `tsv` (with a header).
        column: the key or column that holds the text.

    Raises:
        InvalidInputError: a CSV header lacks the column.
    """
    if form in ("csv", "tsv"):
        yield from _table_texts(lines, "," if form == "csv" else "\t", column)
        return
    for number, raw in enumerate(lines, 1):
        yield _text_line(number, raw, form, column)


def _text_line(number: int, raw: bytes, form: str, column: str) -> TextLine:
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return TextLine(number, None, f"not UTF-8 (byte {error.start})")
    if form == "jsonl":
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            return TextLine(number, None, f"not JSON ({error})")
        value = value.get(column) if isinstance(value, dict) else value
        if not isinstance(value, str):
            return TextLine(number, None, f"no text under the key {column!r}")
        line = value
    return TextLine(number, line) if line.strip() else TextLine(number, None, "the text is empty")


def _table_texts(lines: Iterable[bytes], delimiter: str, column: str) -> Iterator[TextLine]:
    # Undecodable bytes survive as surrogates, so that one bad row does not end the reading of the file.
    decoded = (raw.decode("utf-8", "surrogateescape") for raw in lines)
    reader = csv.reader(decoded, delimiter=delimiter)
    header = [name.lstrip("\ufeff").strip() for name in next(reader, [])]
    if column not in header:
        raise InvalidInputError(
            f"the first line has no column {column!r}; it has: {', '.join(header) or 'nothing'} (choose with --column)"
        )
    position = header.index(column)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield TextLine(reader.line_num, None, f"not a table row ({error})")
            continue
        if not row:
            continue
        text = row[position] if position < len(row) else None
        if text is None:
            yield TextLine(reader.line_num, None, f"has {len(row)} columns, {column!r} is column {position + 1}")
        elif any("\udc80" <= character <= "\udcff" for character in text):
            yield TextLine(reader.line_num, None, "not UTF-8")
        elif not text.strip():
            yield TextLine(reader.line_num, None, "the text is empty")
        else:
            yield TextLine(reader.line_num, text)


@dataclasses.dataclass(frozen=True)
class ScoredPair:
    """Two sentences and how similar people say they are (any scale, higher is more similar)."""

    score: float
    first: str
    second: str


_SCORE_NAMES = (
    "score",
    "label",
    "similarity",
    "similarity_score",
    "relatedness_score",
    "gold",
    "relatedness",
)
_FIRST_NAMES = ("sentence1", "sentence_1", "sentence_a", "text1", "text_a", "first", "s1", "query")
_SECOND_NAMES = ("sentence2", "sentence_2", "sentence_b", "text2", "text_b", "second", "s2", "document")


def read_scored_pairs(path: Path) -> list[ScoredPair]:
    """Scored sentence pairs from a TSV, CSV or JSONL file.

    With a header, columns are found by name (score, sentence1, sentence2 and the other names common in public data);
    without one, the rows are score, sentence, sentence.

    Raises:
        InvalidInputError: the file is missing, empty, not UTF-8 or has the wrong columns; the text says which line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidInputError(f"{path}, line {line}: not UTF-8 text") from error
    except OSError as error:
        raise InvalidInputError(f"the evaluation file {path} cannot be read: {error.strerror}") from error
    rows = _json_rows(path, text) if path.suffix in (".jsonl", ".json") else _delimited_rows(path, text)
    pairs = [_pair(path, number, *cells) for number, cells in rows]
    if len(pairs) < 2:
        raise InvalidInputError(f"the evaluation file {path} has {len(pairs)} pairs; a correlation needs at least 2")
    if len({pair.score for pair in pairs}) < 2:
        raise InvalidInputError(f"all pairs of {path} have the same score; a correlation needs different ones")
    return pairs


Cells = tuple[Any, Any, Any]


def _delimited_rows(path: Path, text: str) -> Iterator[tuple[int, Cells]]:
    # Not splitlines(), which also ends a row at the line separators of Unicode that sentences contain.
    lines = io.StringIO(text)
    if path.suffix == ".csv":
        reader = csv.reader(lines)
    else:  # tab-separated public data uses quotation marks as plain characters
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    order: Sequence[int] | None = None
    try:
        for row in reader:
            if not row or row == [""]:
                continue
            if order is None:
                order = _header_order(row)
                if order is not None:
                    continue
                order = _plain_order(path, reader.line_num, row)
            if len(row) <= max(order):
                raise InvalidInputError(
                    f"{path}, line {reader.line_num}: {len(row)} columns where {max(order) + 1} are needed "
                    "(score, sentence, sentence)"
                )
            yield reader.line_num, (row[order[0]], row[order[1]], row[order[2]])
    except csv.Error as error:
        raise InvalidInputError(f"{path}, line {reader.line_num}: {error}") from error


def _header_order(row: Sequence[str]) -> tuple[int, int, int] | None:
    """Positions of score, first and second sentence if the row is a header that names them."""
    names = [cell.strip().lower() for cell in row]
    found = []
    for known in (_SCORE_NAMES, _FIRST_NAMES, _SECOND_NAMES):
        position = next((names.index(name) for name in known if name in names), None)
        if position is None:
            return None
        found.append(position)
    return found[0], found[1], found[2]


def _plain_order(path: Path, line: int, row: Sequence[str]) -> tuple[int, int, int]:
    """Positions in a file without a header: the score comes first or last, two sentences follow or precede it."""
    if len(row) >= 3:
        if _is_number(row[0]):
            return 0, 1, 2
        if _is_number(row[2]) and not _is_number(row[1]):
            return 2, 0, 1
    raise InvalidInputError(
        f"{path}, line {line}: expected a header with score, sentence1, sentence2, or rows of score, sentence, "
        f"sentence; found {len(row)} columns beginning with {row[0][:40]!r}"
    )


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or (order := _header_order(list(row))) is None:
            raise InvalidInputError(
                f"{path}, line {number}: expected an object with the keys score, sentence1 and sentence2"
            )
        values = list(row.values())
        yield number, (values[order[0]], values[order[1]], values[order[2]])


def _pair(path: Path, number: int, score: Any, first: Any, second: Any) -> ScoredPair:
    if not _is_number(score):
        raise InvalidInputError(f"{path}, line {number}: the score {score!r} is not a number")
    if not isinstance(first, str) or not isinstance(second, str):
        raise InvalidInputError(f"{path}, line {number}: the sentences must be text")
    return ScoredPair(float(score), first, second)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return float(value) == float(value)  # not NaN
    except (TypeError, ValueError):
        return False
