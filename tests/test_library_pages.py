"""runtime/library_pages.py: what libraries needed for loading leaves the process, what was changed stays."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxpress
from onnxpress.runtime import library_pages as module
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.library_pages import drop_library_pages, unchanged_files
from onnxpress.runtime.settings import PRESETS, ServingSettings

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what lies where")
PAGE = mmap.PAGESIZE
SMAPS = """\
1000-3000 r-xp 00001000 fd:01 77                         /usr/lib/libfirst.so
Size:                  8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
3000-4000 r--p 00003000 fd:01 77                         /usr/lib/libfirst.so
Anonymous:             4 kB
4000-5000 rw-p 00004000 fd:01 77                         /usr/lib/libfirst.so
Anonymous:             0 kB
5000-6000 r--s 00000000 fd:01 78                         /data/of the user
Anonymous:             0 kB
6000-7000 r--p 00000000 fd:01 79                         /usr/lib/a name with spaces
Anonymous:             0 kB
7000-8000 r--p 00000000 00:00 0
Anonymous:             0 kB
8000-9000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
9000-a000 ---p 00000000 fd:01 77                         /usr/lib/libfirst.so
Anonymous:             0 kB"""


def test_only_read_only_private_files_without_a_changed_page() -> None:
    assert unchanged_files(SMAPS.splitlines()) == [(0x1000, 0x3000), (0x6000, 0x7000)]


def protect(address: int, size: int, flags: int) -> None:
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) == 0


def resident_kb(address: int) -> int:
    """Of the mapping that begins at an address."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    raise AssertionError(f"no memory at {address:x}")


@needs_linux
@pytest.mark.parametrize("changed", [False, True])
def test_unchanged_pages_go_and_come_back_and_changed_ones_stay(tmp_path: Path, changed: bool) -> None:
    content = bytes(range(256)) * (64 * PAGE // 256)
    (tmp_path / "library").write_bytes(content)
    with (tmp_path / "library").open("rb") as file:
        memory = mmap.mmap(file.fileno(), len(content), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    values = np.frombuffer(memory, np.uint8)
    address = values.ctypes.data
    expected = int(values.sum())  # reads all of it
    if changed:
        values[3 * PAGE] += 1
        expected += 1
    protect(address, len(content), mmap.PROT_READ)
    assert resident_kb(address) == len(content) // 1024
    drop_library_pages()
    assert resident_kb(address) == (len(content) // 1024 if changed else 0)
    assert int(values.sum()) == expected


def test_other_systems_and_those_that_hide_it_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_SMAPS", tmp_path / "none")
    drop_library_pages()
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.setattr(module, "unchanged_files", lambda _: pytest.fail("looked at the memory"))
    drop_library_pages()


@pytest.mark.parametrize(("preset", "times"), [("balanced", 0), ("small", 2)])
def test_the_small_preset_drops_before_and_after_loading(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, preset: str, times: int
) -> None:
    dropped = []
    monkeypatch.setattr(module, "drop_library_pages", lambda: dropped.append(1))
    texts = ["w1 w2", "w3"]
    model = onnxpress.load(tiny_bundle, settings=PRESETS[preset], task="feature-extraction")
    found = model.embed(texts)
    assert len(dropped) == times
    expected = onnxpress.load(tiny_bundle, task="feature-extraction").embed(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_words_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="library_pages is 'lose'; give 'keep' or 'drop'"):
        ServingSettings(library_pages="lose")  # type: ignore[arg-type]
