"""runtime/huge_pages.py: memory that is allocated meanwhile lies in huge pages, other memory stays as it is."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from onnxpress.runtime import huge_pages as module
from onnxpress.runtime.huge_pages import added, anonymous_memory, huge_pages, page_bytes
from onnxpress.runtime.settings import PRESETS, ServingSettings

needs_huge_pages = pytest.mark.skipif(page_bytes() is None, reason="this system has no huge pages, or forbids them")
MB = 1 << 20


def touched(size: int) -> tuple[mmap.mmap, int]:
    """Memory of its own, each page written to, and its address."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(memory, np.uint8)
    values[::4096] = 1
    return memory, values.ctypes.data


def advised(address: int) -> bool:
    """Whether the memory around an address is marked for huge pages (VmFlags "hg")."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"no memory at {address:x}")


@needs_huge_pages
def test_what_is_allocated_meanwhile_is_moved_and_nothing_else() -> None:
    old, old_address = touched(32 * MB)
    with huge_pages():
        new, new_address = touched(32 * MB)
    middle = 16 * MB
    assert advised(new_address + middle)
    assert not advised(old_address + middle)
    assert new[middle] == old[middle] == 1  # what it held is still there


@needs_huge_pages
def test_nothing_is_moved_where_it_is_not_wanted() -> None:
    with huge_pages(wanted=False):
        _memory, address = touched(32 * MB)
    assert not advised(address + 16 * MB)


def test_systems_without_them_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "page_bytes", lambda: None)
    monkeypatch.setattr(module, "madvise", lambda *_: pytest.fail("advice was given"))
    with huge_pages():
        touched(4 * MB)


def test_an_administrator_may_forbid_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(module, "_SETTINGS", tmp_path)
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert page_bytes.__wrapped__() is None
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert page_bytes.__wrapped__() == 2 * MB
    (tmp_path / "hpage_pmd_size").unlink()
    assert page_bytes.__wrapped__() is None


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [(0, 4)], [(0, 4)]),
        ([(0, 4)], [(0, 4)], []),
        ([(2, 4)], [(0, 8)], [(0, 2), (4, 8)]),  # neighbours of one kind become one span
        ([(0, 2), (4, 6)], [(0, 8)], [(2, 4), (6, 8)]),
        ([(0, 8)], [(2, 4)], []),
        ([(0, 3)], [(2, 5), (7, 9)], [(3, 5), (7, 9)]),
        ([(8, 9)], [(2, 5)], [(2, 5)]),
    ],
)
def test_what_was_added(before: list[module.Span], after: list[module.Span], expected: list[module.Span]) -> None:
    assert added(before, after) == expected


@needs_huge_pages
def test_memory_with_a_file_behind_it_is_not_among_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * MB))
    with (tmp_path / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        values = np.frombuffer(mapped, np.uint8)
        address = values.ctypes.data
        assert not any(start <= address < end for start, end in anonymous_memory())
        del values


def test_the_small_preset_does_without() -> None:
    assert ServingSettings().huge_pages
    assert not PRESETS["small"].huge_pages
