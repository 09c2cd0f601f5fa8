"""Folders of text files: one text a file, or one sub-folder a label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnxpress.runtime.data.options import Source
from onnxpress.runtime.errors import InvalidInputError

_TEXT_SUFFIXES = ("", ".txt", ".text", ".md")
_MOST_SHOWN = 5


def text_files(source: Source) -> Iterator[Path]:
    """The text files of a folder and of those in it, ordered by name; hidden ones are left out.

    Raises:
        InvalidInputError: there is none.
    """
    found = False
    for path in _files(source.path):
        found = True
        yield path
    if not found:
        raise refused_folder(source, "texts (.txt)")


def labelled_text_files(source: Source) -> Iterator[tuple[Path, str]]:
    """The text files of each folder in a folder, which is named like the label of all texts in it.

    Raises:
        InvalidInputError: there is none.
    """
    found = False
    for folder in _entries(source.path):
        if not folder.is_dir():
            continue
        for path in _files(folder):
            found = True
            yield path, folder.name
    if not found:
        raise refused_folder(source, "texts in one folder for each label")


def refused_folder(source: Source, wanted: str) -> InvalidInputError:
    """The error for a folder that cannot be used; `wanted` is what it might have held."""
    names = [path.name for path in _entries(source.path)]
    if not names:
        return InvalidInputError(f"{source} is empty")
    listed = ", ".join(names[:_MOST_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _MOST_SHOWN else "")
    return InvalidInputError(
        f"{source} holds neither a dataset (written by save_to_disk) nor {wanted}; it has: {listed}; name a file in it "
        "to use that"
    )


def _files(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path)
        elif path.is_file() and path.suffix.lower() in _TEXT_SUFFIXES:
            yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InvalidInputError(f"the folder {folder} cannot be read: {error.strerror}") from error
