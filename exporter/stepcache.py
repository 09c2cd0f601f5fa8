"""Results of steps, kept in the user's cache under a hash of everything they were made from.

An entry is a folder that appears by one rename, so readers never see a part of it and two exports that make the same
entry at once do not disturb each other: the second finds the first's. Entries are removed, oldest use first, when the
cache grows past `ONNXPRESS_CACHE_GB` (default 20).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxpress
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.machine import versions
from onnxpress.runtime.paths import user_cache

_RESULT = "result.json"
_STALE_SECONDS = 24 * 3600  # a folder that is still being made after a day belongs to a process that died


class StepCache:
    """The cache of one export."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def get(
        self, step: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> tuple[Path, dict[str, Any], bool]:
        """The folder and result of a step, made now or found.

        Args:
            step: the step's name.
            key: all that the result depends on, as JSON data; tool versions and onnxpress's own code are added.
            make: writes files into an empty folder and returns JSON data about them.

        Returns:
            the folder (read only it), the data, and whether it was found.
        """
        entry = self.root / f"{step}-{_digest(step, key)}"
        result = entry / _RESULT
        if result.is_file():
            with contextlib.suppress(OSError):  # a read-only cache still serves
                os.utime(entry)
            return entry, json.loads(result.read_text()), True
        aside = Path(tempfile.mkdtemp(prefix=f".making-{step}-", dir=self.root))
        try:
            data = dict(make(aside))
            (aside / _RESULT).write_text(json.dumps(data))
            with contextlib.suppress(OSError):  # another export made it first: theirs is as good
                aside.rename(entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return entry, json.loads(result.read_text()), False

    def trim(self, max_bytes: int) -> None:
        """Remove entries, least recently used first, until at most `max_bytes` are left, and leftovers of dead runs."""
        entries = []
        for path in self.root.iterdir():
            with contextlib.suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if path.name.startswith(".making-"):
                    if age > _STALE_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                elif path.is_dir():
                    entries.append((age, path, sum(file.stat().st_size for file in path.rglob("*"))))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries, reverse=True, key=lambda entry: entry[0]):
            if total <= max_bytes:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= size


@contextlib.contextmanager
def open_cache(keep: bool) -> Iterator[StepCache]:
    """The user's cache, or a temporary one that is removed afterwards when `keep` is False."""
    if keep:
        cache = StepCache(user_cache() / "steps")
        cache.trim(_limit_bytes())
        yield cache
    else:
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
            yield StepCache(Path(folder))


def _limit_bytes() -> int:
    asked = os.environ.get("ONNXPRESS_CACHE_GB", "20")
    try:
        return int(float(asked) * 2**30)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"ONNXPRESS_CACHE_GB is {asked!r}; give a number of gigabytes") from error


def _digest(step: str, key: Mapping[str, Any]) -> str:
    document = {"step": step, "key": key, "versions": versions(), "code": _code_digest()}
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def _code_digest() -> str:
    """Hash of the code that makes the entries, so that no change of it is answered from an older result."""
    package = Path(onnxpress.__file__).parent
    digest = hashlib.sha256()
    for folder in ("exporter", "quantize", "runtime"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
