"""JSON lines: one object a line, with the fields a program needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import InvalidInputError

Row = dict[str, Any]


def read_rows(path: Path, *fields: str) -> list[Row]:
    """All objects of a file.

    Args:
        path: of UTF-8 text; empty lines are passed over.
        fields: that each must have, as texts.

    Raises:
        InvalidInputError: the file cannot be read, or a line is no such object.
    """
    return [parse_row(line, where, *fields) for where, line in numbered_lines(path)]


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not empty, each with the name of its place for errors.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error


def parse_row(line: str, where: str, *fields: str) -> Row:
    """
    Args:
        line: one object.
        where: it stands.
        fields: that it must have, as texts.

    Raises:
        InvalidInputError: it is no such object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: this is not JSON ({error}); give one object a line") from error
    if not isinstance(row, dict):
        raise InvalidInputError(f"{where}: this is of type {type(row).__name__}; give an object, {{...}}")
    for field in fields:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise InvalidInputError(f"{where}: {field!r} is {row.get(field)!r}; give a text")
    return row
