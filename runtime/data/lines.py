"""Text files as streams of lines, or whole, with errors that name the line. Knows nothing of columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from onnxpress.runtime.errors import InvalidInputError

WHOLE_BYTES = 4_000_000
"""A plain text up to this size is one text; of a larger one, blocks are."""
BLOCK = 16_384
"""Characters of a block: some 4,000 tokens, many times the window that a model reads at once."""
LONG_TEXT = 4 * BLOCK
"""Characters of a text that is one of many, beyond which it is parted into blocks."""
LONGEST_LINE = 2**24
"""Characters of a row at most: no row of data is longer, and a file without line ends must not fill memory."""
_HEAD = 8192


def read_lines(path: Path, purpose: str, longest: int | None = None) -> Iterator[str]:
    """The lines of a file in UTF-8, without a byte order mark, every line end a line feed.

    Args:
        path: the file.
        purpose: what it is for, to call it so in an error.
        longest: longer lines come in pieces of so many characters; None: they are refused.

    Raises:
        InvalidInputError: it cannot be read, is not UTF-8, or a line is too long.
    """
    _refuse_binary(path, purpose)
    limit = longest or LONGEST_LINE
    try:
        with path.open(encoding="utf-8-sig") as file:
            number = 0
            while line := file.readline(limit):
                number += 1
                if longest is None and len(line) == limit and not line.endswith("\n"):
                    raise InvalidInputError(f"{path}, line {number}: longer than {limit:,} characters; is it one text?")
                yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except OSError as error:
        raise _unreadable(path, purpose, error) from error


def read_text(path: Path, purpose: str = "evaluation") -> str:
    """The whole content of such a file.

    Raises:
        InvalidInputError: it cannot be read or is not UTF-8.
    """
    _refuse_binary(path, purpose)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except OSError as error:
        raise _unreadable(path, purpose, error) from error


def read_passages(path: Path, purpose: str) -> Iterator[str]:
    """A plain text as one, or blocks of it where it is larger than `WHOLE_BYTES`.

    Raises:
        InvalidInputError: it cannot be read or is not UTF-8.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, purpose, error) from error
    if size <= WHOLE_BYTES:
        yield read_text(path, purpose)
    else:
        yield from blocks(read_lines(path, purpose, longest=BLOCK))


def blocks(lines: Iterable[str]) -> Iterator[str]:
    """Lines put together to texts of up to `BLOCK` characters; a longer line is parted."""
    kept: list[str] = []
    size = 0
    for line in lines:
        for start in range(0, len(line), BLOCK):
            piece = line[start : start + BLOCK]
            if kept and size + len(piece) > BLOCK:
                yield "".join(kept)
                kept, size = [], 0
            kept.append(piece)
            size += len(piece)
    if kept:
        yield "".join(kept)


def parts(text: str) -> Iterator[str]:
    """A text as it is, or blocks of it where it is longer than `LONG_TEXT`."""
    if len(text) <= LONG_TEXT:
        yield text
    else:
        yield from blocks(text.splitlines(keepends=True))


def _refuse_binary(path: Path, purpose: str) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise _unreadable(path, purpose, error) from error
    if b"\0" in head:
        raise InvalidInputError(
            f"the {purpose} file {path} is a binary file, or text that is not UTF-8; give JSONL, CSV, TSV, plain text, "
            ".parquet or .arrow"
        )


def _not_utf8(path: Path) -> InvalidInputError:
    """The error for a file that is not UTF-8: no byte of a longer character looks like a line feed, so the first line
    that cannot be decoded by itself is the one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return InvalidInputError(f"{path}, line {number}: not UTF-8 text")
    return InvalidInputError(f"{path}: not UTF-8 text")


def _unreadable(path: Path, purpose: str, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"the {purpose} file {path} cannot be read: {error.strerror}")
