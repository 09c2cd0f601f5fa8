"""What is the same for all data that is read: which part of a dataset it is, what a report calls it, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from onnxpress.runtime.data.options import Source
from onnxpress.runtime.data.stored import split_folder
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.paths import sha256_of


def resolve(source: Source) -> Source:
    """The source with the split of a dataset chosen, where there are several.

    Raises:
        InvalidInputError: there is nothing at its path that may be read, or no such split.
    """
    try:
        source.path.stat()
    except OSError as error:
        raise InvalidInputError(f"the {source.purpose} file {source.path} cannot be read: {error.strerror}") from error
    return dataclasses.replace(source, path=split_folder(source))


def displayed(path: Path, source: Source) -> str:
    """What a report calls a source: the name without the folders around it, with the split."""
    name = path.name or path.resolve().name
    return name if source.path == path else f"{name}/{source.path.name}"


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content; of a folder's, of the names and hashes of all files in it.

    Raises:
        InvalidInputError: something cannot be read.
    """
    try:
        if not path.is_dir():
            return sha256_of(path)
        digest = hashlib.sha256()
        for root, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                file = Path(root) / name
                digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode("utf-8", "replace"))
        return digest.hexdigest()
    except OSError as error:
        raise InvalidInputError(f"{error.filename or path} cannot be read: {error.strerror}") from error
