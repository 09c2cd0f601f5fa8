"""Ways to put something else in the place of a bundle's file: links, pipes, devices, folders, nothing."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from bench.fuzzing import sealing


def replace_file(folder: Path, rng: random.Random, canary: Path) -> str:
    """One file."""
    document = sealing.read(folder)
    names = [sealing.MANIFEST, *(record["path"] for record in document["files"])]
    name = rng.choice(names)
    kind = rng.choice(
        ("pipe", "link", "link inside", "zero", "full", "folder", "missing", "sparse", "secret", "loop", "empty")
    )
    path = folder / name
    size = path.stat().st_size
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(canary)
        size = canary.stat().st_size
    elif kind == "link inside":
        (folder / "elsewhere").write_bytes(content)
        path.symlink_to(folder.resolve() / "elsewhere")
    elif kind in ("zero", "full"):
        path.symlink_to(f"/dev/{kind}")
        size = 0
    elif kind == "folder":
        path.mkdir()
        size = path.stat().st_size
    elif kind == "sparse":
        path.write_bytes(content)
        os.truncate(path, 2**31)
        size = 2**31
    elif kind == "secret":
        path.write_bytes(content)
        path.chmod(0)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "empty":
        path.touch()
        size = 0
    for record in document["files"]:
        if record["path"] == name:
            record["size_bytes"] = size
    if name != sealing.MANIFEST:
        sealing.write(folder, document)
    return f"{name}: {kind}"


def replace_unlisted(folder: Path, rng: random.Random, canary: Path) -> str:
    """The files that are read though the manifest need not list them."""
    document = sealing.read(folder)
    name = rng.choice(("report.json", "verification.npz", "report.html"))
    document["files"] = [record for record in document["files"] if record["path"] != name]
    sealing.write(folder, document)
    path = folder / name
    path.unlink(missing_ok=True)
    kind = rng.choice(("pipe", "link", "zero", "folder", "sparse", "missing"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(canary)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**31)
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
