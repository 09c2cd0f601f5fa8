"""Which shared libraries a Linux library needs, read from the file, so that nothing is loaded to find out.

The format: ELF-64, little-endian (System V ABI, "Program Loading and Dynamic Linking").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 0, 1, 5, 10
_HEADER_BYTES = 64
_MOST_BYTES = 2**22  # of one table; those of real libraries are far smaller


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Names (DT_NEEDED) of the libraries that a library needs, in order; empty for a file of another format."""
    try:
        with path.open("rb") as file:
            return tuple(_needed(file))
    except (OSError, struct.error, ValueError):  # not there, cut short, or no library at all
        return ()


def _needed(file: BinaryIO) -> Iterator[str]:
    header = file.read(_HEADER_BYTES)
    if not header.startswith(_MAGIC):
        return
    (start,) = struct.unpack_from("<Q", header, 32)  # e_phoff
    size, count = struct.unpack_from("<HH", header, 54)  # e_phentsize, e_phnum
    file.seek(start)
    table = file.read(size * count)
    segments = [struct.unpack_from("<IIQQQQ", table, index * size) for index in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return
    entries = list(struct.iter_unpack("<qQ", _read(file, dynamic[2], dynamic[5])))
    end = next((index for index, (tag, _) in enumerate(entries) if tag == _DT_NULL), len(entries))
    values = dict(entries[:end])
    names = _read(file, _offset_of(values.get(_DT_STRTAB, 0), segments), values.get(_DT_STRSZ, 0))
    for tag, value in entries[:end]:
        if tag == _DT_NEEDED:
            yield names[value : names.index(b"\0", value)].decode()


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MOST_BYTES:
        raise ValueError(f"a table of {size} bytes")
    file.seek(offset)
    return file.read(size)


def _offset_of(address: int, segments: list[tuple[int, ...]]) -> int:
    """Where in the file a virtual address is."""
    for kind, _, offset, start, _, size in segments:
        if kind == _PT_LOAD and start <= address < start + size:
            return offset + address - start
    raise ValueError(f"no segment holds the address {address}")
