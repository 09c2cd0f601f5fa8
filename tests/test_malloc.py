"""runtime/malloc.py: where large blocks lie, for the whole process, and when free memory goes back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from onnxpress.runtime import malloc
from onnxpress.runtime.malloc import give_back_after, keep_large_blocks_out_of_heaps, large_blocks_in_heaps

needs_glibc = pytest.mark.skipif(malloc._glibc() is None, reason="this C library takes no such advice")


class Library:
    """Takes advice and remembers it."""

    def __init__(self) -> None:
        self.bounds: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, name: int, value: int) -> int:
        self.bounds[name] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trimmed += 1
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(malloc, "_glibc", lambda: found)
    monkeypatch.setattr(malloc, "_kept_out", False)
    for name in malloc._SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    return found


def test_large_blocks_are_in_heaps_while_weights_are_loaded(library: Library) -> None:
    with large_blocks_in_heaps():
        assert library.bounds == malloc._IN_HEAPS
        assert not library.trimmed
    assert library.bounds == malloc._IN_HEAPS
    assert library.trimmed == 1  # what loading needed besides them


def test_where_memory_is_to_go_back_they_stay_out_otherwise(library: Library) -> None:
    keep_large_blocks_out_of_heaps()
    assert library.bounds == malloc._OUT_OF_HEAPS
    with large_blocks_in_heaps():
        assert library.bounds == malloc._IN_HEAPS
    assert library.bounds == malloc._OUT_OF_HEAPS
    with contextlib.suppress(ZeroDivisionError), large_blocks_in_heaps():
        raise ZeroDivisionError
    assert library.bounds == malloc._OUT_OF_HEAPS


@pytest.mark.parametrize("name", malloc._SET_BY_USER)
def test_what_the_user_has_set_stays(library: Library, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    keep_large_blocks_out_of_heaps()
    with large_blocks_in_heaps():
        pass
    assert not library.bounds


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "_glibc", lambda: None)
    with large_blocks_in_heaps():
        keep_large_blocks_out_of_heaps()
    assert not malloc.give_back_free_memory()


def test_memory_goes_back_once_a_session_and_what_it_held_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        def __del__(self) -> None:
            freed.set()

    class Session:
        def __init__(self) -> None:
            self.held = Held()

    freed, given_back = threading.Event(), threading.Event()
    monkeypatch.setattr(malloc, "give_back_free_memory", lambda: freed.is_set() and given_back.set())
    session = Session()
    give_back_after(session)
    assert not given_back.wait(0.3)
    del session
    assert given_back.wait(30)


@needs_glibc
def test_glibc_does_as_told() -> None:
    script = """
import ctypes
from onnxpress.runtime.malloc import keep_large_blocks_out_of_heaps, large_blocks_in_heaps
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
heap = lambda: next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0].split("-")
def is_in_heap():
    address = library.malloc(ctypes.c_size_t(8 << 20))
    start, end = (int(text, 16) for text in heap())
    return start <= address < end
before = is_in_heap()
with large_blocks_in_heaps():
    within = is_in_heap()
keep_large_blocks_out_of_heaps()
with large_blocks_in_heaps():
    again = is_in_heap()
print(before, within, again, is_in_heap())
"""
    environment = {name: value for name, value in os.environ.items() if name not in malloc._SET_BY_USER}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False", "True", "True", "False"]
