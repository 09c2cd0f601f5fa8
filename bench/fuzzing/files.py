"""Ways to put something else in the place of a bundle's file: links, pipes, devices, folders, nothing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.fuzzing import sealing


def replace_file(folder: Path, rng: random.Random, canary: Path) -> str:
    """One file. The manifest says the size of what is there now."""
    document = sealing.read(folder)
    name = rng.choice([sealing.MANIFEST, *(record["path"] for record in document["files"])])
    kind = rng.choice(sorted(_KINDS))
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    _KINDS[kind](path, content, canary)
    for record in document["files"]:
        if record["path"] == name:
            record["size_bytes"] = _size(path)
    if name != sealing.MANIFEST:
        sealing.write(folder, document)
    return f"{name}: {kind}"


def _sparse(path: Path, content: bytes, canary: Path) -> None:
    path.write_bytes(content)
    os.truncate(path, 2**30)


def _linked_inside(path: Path, content: bytes, canary: Path) -> None:
    away = path.with_name("elsewhere")
    away.write_bytes(content)
    path.symlink_to(away.resolve())


def _secret(path: Path, content: bytes, canary: Path) -> None:
    path.write_bytes(content)
    path.chmod(0)


_KINDS: dict[str, Callable[[Path, bytes, Path], None]] = {
    "pipe": lambda path, content, canary: os.mkfifo(path),
    "link": lambda path, content, canary: path.symlink_to(canary),
    "link inside": _linked_inside,
    "zero": lambda path, content, canary: path.symlink_to("/dev/zero"),
    "full": lambda path, content, canary: path.symlink_to("/dev/full"),
    "folder": lambda path, content, canary: path.mkdir(),
    "missing": lambda path, content, canary: None,
    "sparse": _sparse,
    "secret": _secret,
    "loop": lambda path, content, canary: path.symlink_to(path),
    "empty": lambda path, content, canary: path.touch(),
}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def replace_unlisted(folder: Path, rng: random.Random, canary: Path) -> str:
    """The files that are read though the manifest need not list them."""
    document = sealing.read(folder)
    name = rng.choice(("report.json", "verification.npz", "report.html"))
    document["files"] = [record for record in document["files"] if record["path"] != name]
    sealing.write(folder, document)
    path = folder / name
    path.unlink(missing_ok=True)
    kind = rng.choice(("pipe", "link", "zero", "folder", "sparse", "missing", "loop", "empty"))
    _KINDS[kind](path, b"", canary)
    return f"{name} not listed: {kind}"


def replace_folder(folder: Path, rng: random.Random, canary: Path) -> str:
    """A folder of the bundle, or all of it, by a link that leaves."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    away = folder.with_name(f"{folder.name}-away")
    if not names:
        folder.rename(away)
        folder.symlink_to(away)
        return "the bundle is a link"
    name = rng.choice(names)
    shutil.move(folder / name, away)
    (folder / name).symlink_to(away)
    return f"{name} is a link that leaves"
