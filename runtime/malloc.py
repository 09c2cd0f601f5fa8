"""What glibc's allocator is told, which holds for the whole process: which blocks it maps one by one, and when it gives
memory back. Other C libraries (musl, macOS, Windows) have nothing of this, and are left alone.

By default glibc maps blocks of 128 KiB and more one by one, and lets that bound rise up to 32 MiB with what is freed.
Two wishes contradict each other. Memory that is to go back when it is free must not lie in a heap, of which only the
end goes back. Weights that are read for every token should lie there: mapped one by one, each begins at the same place
of a page, so that what is read side by side wants the same places of the caches, and huge pages cover less of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_OUT_OF_HEAPS = {_M_MMAP_THRESHOLD: 1 << 20, _M_TRIM_THRESHOLD: 1 << 20}
# The most that glibc takes on systems of 64 bits, and twice that, as it has it itself where the first rises.
_IN_HEAPS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}
_SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_SOON_SECONDS = 0.1

_changing = threading.Lock()
_kept_out = False


def give_back_free_memory() -> bool:
    """Make the C library return what it holds and nobody uses. False where it cannot, or had nothing."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


def give_back_after(session: object) -> None:
    """Give memory back once a session is gone, whose weights lay in a heap."""
    weakref.finalize(session, _give_back_soon).atexit = False


def keep_large_blocks_out_of_heaps() -> None:
    """Have blocks of 1 MiB and more mapped one by one from now on, unless the process's user has set such bounds."""
    global _kept_out
    with _changing:
        if not _kept_out:
            _set(_OUT_OF_HEAPS)
            _kept_out = True


@contextlib.contextmanager
def large_blocks_in_heaps() -> Iterator[None]:
    """Put what is allocated meanwhile one behind another. Then the bounds are those of
    `keep_large_blocks_out_of_heaps`, where that was called; else they stay, for glibc's would have risen as high."""
    with _changing:
        _set(_IN_HEAPS)
    try:
        yield
    finally:
        give_back_free_memory()
        with _changing:
            if _kept_out:
                _set(_OUT_OF_HEAPS)


def _give_back_soon() -> None:
    # Python tells that an object goes just before it frees what the object holds.
    timer = threading.Timer(_SOON_SECONDS, give_back_free_memory)
    timer.daemon = True
    timer.start()


def _set(bounds: dict[int, int]) -> None:
    library = _glibc()
    if library is not None and not any(name in os.environ for name in _SET_BY_USER):
        for name, value in bounds.items():
            library.mallopt(name, value)


@functools.cache
def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
