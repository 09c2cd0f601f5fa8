"""Rows of evaluation and calibration data: TSV, CSV, JSONL and datasets on disk, with columns found by the names that
were given for them, by the names common in public data, or by their order.

Every error names the file and the line. What the cells mean is left to the modules of the tasks.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.runtime.data.folders import refused_folder
from onnxpress.runtime.data.lines import read_lines
from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.stored import StoredRows, is_stored
from onnxpress.runtime.errors import InvalidInputError

JSON_SUFFIXES = (".json", ".jsonl")
_MOST_SHOWN = 30

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

    by_name: Callable[[Sequence[str], Positions], Positions | None]
    """From the lower-case names of a header or of an object's keys, and the columns that were given by name; None if
    one is missing."""
    by_order: Callable[[Sequence[str]], Positions | None]
    """From the first row of a file without a header; None if that is no such row."""
    names: str
    order: str
    columns: Mapping[str, str]
    """Names that a person may give a column, and the key of its cells."""
    bare: str | None = None
    """The key of a JSON line that is a text by itself; None: it must be an object."""


def read_rows(source: Source, layout: Layout) -> Iterator[Row]:
    """The rows of a dataset on disk or a file: JSONL by its suffix, comma-separated if that is `.csv`, else
    tab-separated.

    Raises:
        InvalidInputError: the data cannot be used; the text says which line.
    """
    if is_stored(source.path):
        yield from _stored_rows(source, layout)
    elif source.path.is_dir():
        raise refused_folder(source, "anything else this task is read from")
    elif source.suffix in JSON_SUFFIXES:
        yield from _json_rows(source, layout)
    else:
        yield from _delimited_rows(source, layout)


def first_row(source: Source) -> list[str]:
    """The first line of CSV or TSV that is not empty; [] without one.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    return next((row for _, row in _delimited(source)), [])


def _json_values(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            yield place, json.loads(line.removesuffix("\n"))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{place}: not JSON ({error})") from error


def _json_rows(source: Source, layout: Layout) -> Iterator[Row]:
    expected = f"expected an object with the keys {layout.names}"
    names: list[str] = []
    positions: Positions | None = None
    for place, found in _json_values(source.path, read_lines(source.path, source.purpose)):
        if layout.bare is not None and isinstance(found, str):
            yield Row(place, {layout.bare: found})
            continue
        if not isinstance(found, dict):
            raise InvalidInputError(f"{place}: {expected}")
        if positions is None or list(found) != names:  # mostly all rows have the same keys
            names = list(found)
            positions = _by_name(place, names, source, layout)
        if positions is None:
            raise InvalidInputError(f"{place}: {expected}{_there(names)}")
        values = list(found.values())
        yield Row(place, {name: values[position] for name, position in positions.items()})


def _stored_rows(source: Source, layout: Layout) -> Iterator[Row]:
    stored = StoredRows(source)
    place = f"{source.path}"
    positions = _by_name(place, stored.names, source, layout)
    if positions is None:
        raise InvalidInputError(f"{place}: expected the columns {layout.names}{_there(stored.names)}")
    for at, cells in stored.rows([stored.names[position] for position in positions.values()]):
        yield Row(at, dict(zip(positions, cells, strict=True)))


def _delimited(source: Source) -> Iterator[tuple[int, list[str]]]:
    """Rows of CSV and TSV that are not empty, with the number of their last line."""
    lines = read_lines(source.path, source.purpose)
    if source.suffix == ".csv":
        reader = csv.reader(lines)
    else:  # tab-separated public data uses quotation marks as plain characters
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        for row in reader:
            if len(row) > 1 or "".join(row).strip():
                yield reader.line_num, row
    except csv.Error as error:
        raise InvalidInputError(f"{source.path}, line {reader.line_num}: {error}") from error


def _delimited_rows(source: Source, layout: Layout) -> Iterator[Row]:
    positions: Positions | None = None
    for number, row in _delimited(source):
        place = f"{source.path}, line {number}"
        if positions is None:
            positions = _by_name(place, row, source, layout)
            if positions is not None:
                continue
            positions = _order(place, row, layout)
        needed = max(positions.values()) + 1
        if len(row) < needed:
            raise InvalidInputError(f"{place}: {len(row)} columns where {needed} are needed ({layout.order})")
        yield Row(place, {name: row[position] for name, position in positions.items()})


def _by_name(place: str, names: Sequence[str], source: Source, layout: Layout) -> Positions | None:
    """The columns, if these are names of theirs; where some were given, they must be.

    Raises:
        InvalidInputError: a column that was given is not there, or another is missing beside it.
    """
    given = source.options.columns
    chosen = {layout.columns[known]: _position(place, names, known, column) for known, column in given.items()}
    positions = layout.by_name([name.strip().lower() for name in names], chosen)
    if given and positions is None:
        listed = ", ".join(f"{known}={column}" for known, column in given.items())
        raise InvalidInputError(f"{place}: {layout.names} are needed; {listed} alone is not enough{_there(names)}")
    return positions


def _position(place: str, names: Sequence[str], known: str, column: str) -> int:
    """Where a column is that was given by name: as it is written, else in any case."""
    plain = [name.strip().removeprefix("\ufeff") for name in names]
    found = [index for index, name in enumerate(plain) if name == column]
    found = found or [index for index, name in enumerate(plain) if name.casefold() == column.casefold()]
    if len(found) != 1:
        what = "no column" if not found else f"{len(found)} columns"
        raise InvalidInputError(f"{place}: {what} {column!r}, which is to be {known}{_there(names)}")
    return found[0]


def _there(names: Sequence[str]) -> str:
    shown = ", ".join(name.strip()[:40] for name in names[:_MOST_SHOWN]) or "none"
    return f"; there are: {shown}{f', ... ({len(names)} in all)' if len(names) > _MOST_SHOWN else ''}"


def _order(place: str, row: Sequence[str], layout: Layout) -> Positions:
    positions = layout.by_order(row)
    if positions is None:
        raise InvalidInputError(
            f"{place}: expected a header with {layout.names}, or rows of {layout.order}; found {len(row)} columns "
            f"beginning with {row[0][:40]!r}"
        )
    return positions


def find_columns(names: Sequence[str], chosen: Positions, **known: Sequence[str]) -> dict[str, int] | None:
    """Positions of columns, by the names each may have, the likeliest first; None if one is missing.

    Args:
        names: of all columns, in lower case.
        chosen: positions of columns that a person has named; their names are not looked for.
        known: for each column the names it may have.
    """
    found = {}
    for column, synonyms in known.items():
        position = chosen.get(column)
        if position is None:
            free = (names.index(name) for name in synonyms if name in names)
            position = next((place for place in free if place not in chosen.values()), None)
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
