"""Texts from lines, CSV, TSV and JSONL, with line numbers so that errors can name them. Evaluation files are read in
runtime/evaluation/."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from onnxpress.runtime.errors import InvalidInputError


@dataclasses.dataclass(frozen=True)
class TextLine:
    """One input text, or the reason it cannot be read."""

    number: int
    text: str | None
    error: str | None = None
    second: str | None = None
    """The other text of a pair."""


def read_texts(
    lines: BinaryIO | Iterable[bytes], form: str, column: str, second: str | None = None
) -> Iterator[TextLine]:
    """Texts from lines of bytes.

    Args:
        lines: a binary file or any iterable of lines.
        form: `text` (each line is a text), `jsonl` (each line an object or a string), `csv` or `tsv` (with a header).
        column: the key or column that holds the text.
        second: the key or column that holds the other text of a pair; None: there are no pairs.

    Raises:
        InvalidInputError: a CSV header lacks a column, or pairs are wanted from plain lines.
    """
    if form in ("csv", "tsv"):
        yield from _table_texts(lines, "," if form == "csv" else "\t", column, second)
        return
    if form == "text" and second is not None:
        raise InvalidInputError(
            f"a plain line has no second text {second!r}; give CSV, TSV or JSONL with {column!r} and {second!r}"
        )
    for number, raw in enumerate(lines, 1):
        yield _text_line(number, raw, form, column, second)


def _text_line(number: int, raw: bytes, form: str, column: str, second: str | None) -> TextLine:
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return TextLine(number, None, f"not UTF-8 (byte {error.start})")
    if form == "jsonl":
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            return TextLine(number, None, f"not JSON ({error})")
        names = [column] if second is None else [column, second]
        texts = [value.get(name) for name in names] if isinstance(value, dict) else [value]
        found = [text for text in texts if isinstance(text, str)]
        if len(found) < len(names):
            missing = next((name for name, text in zip(names, texts, strict=False) if text not in found), names[-1])
            return TextLine(number, None, f"no text under the key {missing!r}")
        return _checked(number, *found)
    return _checked(number, line)


def _checked(number: int, text: str, second: str | None = None) -> TextLine:
    if not text.strip() or (second is not None and not second.strip()):
        return TextLine(number, None, "the text is empty")
    return TextLine(number, text, second=second)


def _table_texts(lines: Iterable[bytes], delimiter: str, column: str, second: str | None) -> Iterator[TextLine]:
    # Undecodable bytes survive as surrogates, so that one bad row does not end the reading of the file.
    decoded = (raw.decode("utf-8", "surrogateescape") for raw in lines)
    reader = csv.reader(decoded, delimiter=delimiter)
    header = [name.lstrip("\ufeff").strip() for name in next(reader, [])]
    names = [column] if second is None else [column, second]
    for name in names:
        if name not in header:
            raise InvalidInputError(
                f"the first line has no column {name!r}; it has: {', '.join(header) or 'nothing'} (choose with "
                f"{'--column' if name == column else '--pair-column'})"
            )
    positions = [header.index(name) for name in names]
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
        if max(positions) >= len(row):
            last = max(positions)
            yield TextLine(
                reader.line_num, None, f"has {len(row)} columns, {names[positions.index(last)]!r} is column {last + 1}"
            )
            continue
        texts = [row[position] for position in positions]
        if any("\udc80" <= character <= "\udcff" for text in texts for character in text):
            yield TextLine(reader.line_num, None, "not UTF-8")
        else:
            yield _checked(reader.line_num, *texts)
