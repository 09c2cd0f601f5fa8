"""Notices when a file is opened, by whatever code of whatever process, with Linux's inotify.

Spoiled bundles point at the canary in many ways: nothing may follow. Where there is no inotify, nothing is noticed.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_IN_OPEN, _IN_ACCESS, _IN_CREATE, _IN_MODIFY = 0x20, 0x1, 0x100, 0x2
_HEADER = struct.Struct("iIII")  # watch, mask, cookie, length of the name


class Canary:
    """A folder with a file that nothing has a reason to open."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file = folder / "canary.bin"
        self.file.write_bytes(bytes(range(256)) * 256)
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        mask = _IN_OPEN | _IN_ACCESS | _IN_CREATE | _IN_MODIFY
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot be used")

    def opened(self) -> list[str]:
        """Names in the folder that were opened, read or written since the last call."""
        try:
            data = os.read(self._descriptor, 2**16)
        except BlockingIOError:
            return []
        names, position = [], 0
        while position < len(data):
            *_, length = _HEADER.unpack_from(data, position)
            start = position + _HEADER.size
            names.append(os.fsdecode(data[start : start + length].rstrip(b"\0")))
            position = start + length
        return sorted({name for name in names if name})  # without a name: the folder itself was listed

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)
