"""Folders and files: the user's cache, safe relative paths, hashes, files written so that a crash cannot tear them."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from pathlib import Path, PurePosixPath

MANIFEST_NAME = "onnxpress.json"


def user_cache() -> Path:
    """Where onnxpress keeps what it can make again: `ONNXPRESS_CACHE`, else `XDG_CACHE_HOME/onnxpress`, else
    `~/.cache/onnxpress`. A user without a home, such as a number that a container runs as, has `/` for one."""
    if chosen := os.environ.get("ONNXPRESS_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else _home() / ".cache") / "onnxpress"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # HOME is not set and the system does not know the user
        return Path("/")


def models_folder() -> Path:
    """The recipes and the texts that onnxpress brings along, as installed."""
    return Path(str(importlib.resources.files("onnxpress.models")))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_inside(relative: str) -> bool:
    """Whether a relative POSIX path stays in its folder: not empty, not absolute, no `..`, no backslash or drive."""
    path = PurePosixPath(relative)
    bad = not path.parts or path.is_absolute() or ".." in path.parts or "\\" in relative or "\0" in relative
    return not bad and ":" not in path.parts[0]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part: written aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Force every file of a folder, and its entries, to disk, so that a later rename cannot expose missing content."""
    for root, _, files in os.walk(folder):
        for name in (*files, "."):
            sync(Path(root) / name)


def sync(path: Path) -> None:
    """Force one file, or the entries of one folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
