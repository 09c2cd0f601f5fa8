"""Rows of evaluation files: TSV, CSV and JSONL, with columns found by name or by their order.

Every error names the file and the line. What the cells mean is left to the modules of the tasks.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import InvalidInputError

JSON_SUFFIXES = (".json", ".jsonl")

Positions = Mapping[str, int]
"""Where the columns are that a task knows; one that may be missing is left out."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The cells of one row that a task knows, and where it stands."""

    place: str
    """For errors: file and line."""
    cells: Mapping[str, Any]
    """Text in TSV and CSV, any JSON value in JSONL."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which columns a task's files have, and what to tell a person whose file has others."""

    by_name: Callable[[Sequence[str]], Positions | None]
    """From the lower-case names of a header or of an object's keys; None if they are not those of a header."""
    by_order: Callable[[Sequence[str]], Positions | None]
    """From the first row of a file without a header; None if that is no such row."""
    names: str
    order: str


def read_text(path: Path, purpose: str = "evaluation") -> str:
    """The content of a file in UTF-8, without a byte order mark, every line end a line feed.

    Args:
        path: the file.
        purpose: what it is for, to call it so in an error.

    Raises:
        InvalidInputError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidInputError(f"{path}, line {line}: not UTF-8 text") from error
    except OSError as error:
        raise InvalidInputError(f"the {purpose} file {path} cannot be read: {error.strerror}") from error


def read_rows(path: Path, layout: Layout) -> Iterator[Row]:
    """The rows of a file: JSONL by its suffix, comma-separated if that is `.csv`, else tab-separated.

    Raises:
        InvalidInputError: the file cannot be used; the text says which line.
    """
    text = read_text(path)
    if path.suffix in JSON_SUFFIXES:
        for place, found in read_objects(path, text, f"the keys {layout.names}"):
            positions = layout.by_name(_plain_names(list(found)))
            if positions is None:
                raise InvalidInputError(f"{place}: expected an object with the keys {layout.names}")
            values = list(found.values())
            yield Row(place, {name: values[position] for name, position in positions.items()})
    else:
        yield from _delimited_rows(path, text, layout)


def read_objects(path: Path, text: str, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSONL, each with its place.

    Raises:
        InvalidInputError: a line is not a JSON object.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{place}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise InvalidInputError(f"{place}: expected an object with {expected}")
        yield place, value


def _delimited_rows(path: Path, text: str, layout: Layout) -> Iterator[Row]:
    # Not splitlines(), which also ends a row at the line separators of Unicode that sentences contain.
    lines = io.StringIO(text)
    if path.suffix == ".csv":
        reader = csv.reader(lines)
    else:  # tab-separated public data uses quotation marks as plain characters
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    positions: Positions | None = None
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if len(row) < 2 and not "".join(row).strip():
                continue
            if positions is None:
                positions = layout.by_name(_plain_names(row))
                if positions is not None:
                    continue
                positions = _order(place, row, layout)
            needed = max(positions.values()) + 1
            if len(row) < needed:
                raise InvalidInputError(f"{place}: {len(row)} columns where {needed} are needed ({layout.order})")
            yield Row(place, {name: row[position] for name, position in positions.items()})
    except csv.Error as error:
        raise InvalidInputError(f"{path}, line {reader.line_num}: {error}") from error


def _order(place: str, row: Sequence[str], layout: Layout) -> Positions:
    positions = layout.by_order(row)
    if positions is None:
        raise InvalidInputError(
            f"{place}: expected a header with {layout.names}, or rows of {layout.order}; found {len(row)} columns "
            f"beginning with {row[0][:40]!r}"
        )
    return positions


def _plain_names(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def find_columns(names: Sequence[str], **known: Sequence[str]) -> dict[str, int] | None:
    """Positions of columns by the names each may have, the likeliest first; None if one is missing."""
    found = {}
    for column, synonyms in known.items():
        position = next((names.index(name) for name in synonyms if name in names), None)
        if position is None:
            return None
        found[column] = position
    return found


def is_number(value: Any) -> bool:
    """Whether a cell is a finite number, or text that says one."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def text_of(place: str, name: str, value: Any) -> str:
    """A cell that must hold text.

    Raises:
        InvalidInputError: it is something else, or empty.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{place}: {name} must be text, not {shown(value)}")
    if not value.strip():
        raise InvalidInputError(f"{place}: {name} is empty")
    return value


def shown(value: Any) -> str:
    """A JSON value in an error: short, and without walking through what may be nested deeply."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:40]


def texts_of(place: str, name: str, value: Any) -> tuple[str, ...]:
    """A value that must be a list of texts.

    Raises:
        InvalidInputError: it, or an item, is something else or empty.
    """
    if not isinstance(value, list):
        raise InvalidInputError(f"{place}: {name} must be a list of texts, not {shown(value)}")
    return tuple(text_of(place, f"item {index} of {name}", item) for index, item in enumerate(value))
