"""Pages of program files that only starting and loading needed: their memory is dropped before and after a model is
loaded.

Linux maps libraries a piece at a time as they are executed, and takes the surroundings along. What starting Python,
building a graph and optimizing it touched stays resident for good, though running the graph needs little of it: of
all-MiniLM-L6-v2 in INT8 some 25 of 117 MB. Such pages are unchanged copies of a file. Dropped, they are still in the
system's page cache, which gives them to whoever needs them, or the room to others; what a run needs comes back with it.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxpress.runtime.huge_pages import Span, madvise

_DONT_NEED = 4  # MADV_DONTNEED (linux/mman.h)
_SMAPS = Path("/proc/self/smaps")
# Private memory with a file behind it that nobody may write to: range, permissions, offset, device, inode, path.
_FILE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p [0-9a-f]+ [0-9a-f:]+ [1-9]\d* +/")
_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")


@contextlib.contextmanager
def dropped_library_pages(wanted: bool = True) -> Iterator[None]:
    """Drop them before what is done meanwhile, so that its peak is lower, and after it. Does nothing where the system
    is not Linux.

    Args:
        wanted: False: do nothing.
    """
    if wanted:
        drop_library_pages()
    yield
    if wanted:
        drop_library_pages()


def drop_library_pages() -> None:
    """Drop the unchanged pages of program files from this process."""
    if not sys.platform.startswith("linux"):
        return
    try:
        lines = _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a system that hides it
        return
    for start, end in unchanged_files(lines):
        madvise(start, end - start, _DONT_NEED)


def unchanged_files(lines: Sequence[str]) -> list[Span]:
    """Read-only private mappings of files of which every page is the file's own.

    What was changed and then protected, as the loader does with the addresses it fills in, is anonymous memory: it
    cannot be read from the file again, so its mapping is none of these.

    Args:
        lines: of `/proc/self/smaps`.
    """
    found = []
    span: Span | None = None
    for line in lines:
        if _HEAD.match(line):
            match = _FILE.match(line)
            span = (int(match[1], 16), int(match[2], 16)) if match else None
        elif span is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                found.append(span)
            span = None
    return found
