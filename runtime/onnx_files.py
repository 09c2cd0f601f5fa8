"""Reads just enough of an ONNX file to know which other files it points to, without the onnx package, and refuses what
onnxruntime would not survive.

onnxruntime opens the external-data files a model names, so a bundle from elsewhere must not name files outside its
folder. It also puts the bodies of functions in the place of their calls until there are none, so these must come to an
end. This walks the protocol-buffer fields that can hold tensors or nodes and nothing else.
Field numbers: onnx/onnx.proto of the ONNX project; wire format: the Protocol Buffers encoding guide.
"""

from __future__ import annotations

import collections
import mmap
from collections.abc import Iterator
from pathlib import Path

from onnxpress.runtime.errors import InvalidBundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64
_MAX_KEY = 2**32 - 1  # protobuf's C++ reader drops the bits above, so that a larger key would be another field to it
_MAX_BYTES = 2**31 - 1  # of a message that protobuf reads
_MOST_FIELDS = 10_000_000  # of the parts that are walked: a graph of 10,000 nodes has some 200,000
_MOST_NODES = 1_000_000  # with the bodies of functions in the place of their calls

# message -> {field number: message of that field}; fields that cannot lead to a tensor or a node are skipped.
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
}
# What identifies a function, in its definition and in a node that calls it: domain, name, overload.
_IDENTITY = {"Function": (10, 1, 13), "Node": (7, 4, 8)}

_ENGINE = b"EPContext"  # a compiled engine, in a file that providers open by themselves

_Function = tuple[bytes, bytes, bytes]


def external_data_locations(path: Path) -> set[str]:
    """Every file name that tensors of the ONNX file at `path` point to, as written there.

    Raises:
        InvalidBundleError: the file is empty, larger than protocol buffers may be or no such message, or its graphs or
            functions are nested too deeply or without end.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > _MAX_BYTES:
                raise ValueError(f"it has {size:,} bytes, more than the {_MAX_BYTES:,} of a protocol-buffer message")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                walk = _Walk(data)
                walk.message(0, len(data), "Model", 0)
                walk.check_functions()
                return walk.locations
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InvalidBundleError(f"{path} is not a readable ONNX file ({error}); export the bundle again") from error


class _Walk:
    """One walk through a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.locations: set[str] = set()
        self._data = data
        self._fields_left = _MOST_FIELDS
        self._calls: collections.Counter[_Function] = collections.Counter()  # of the body that is walked
        self._bodies: dict[_Function, collections.Counter[_Function]] = {}

    def message(self, start: int, end: int, message: str, depth: int) -> None:
        """Walk a message in data[start:end]."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"graphs nested deeper than {_MAX_DEPTH}")
        paths, names = _PATHS[message], _IDENTITY.get(message, ())
        identity = dict.fromkeys(names, b"")
        around = self._calls
        if message == "Function":
            self._calls = collections.Counter()
        for number, begin, stop in self._fields(start, end):
            inner = paths.get(number)
            if inner == "ExternalData":
                entry = dict(self._fields_as_text(begin, stop))
                if entry.get(1) == "location":
                    self.locations.add(entry.get(2, ""))
            elif inner is not None:
                self.message(begin, stop, inner, depth + 1)
            elif number in identity:
                identity[number] = self._data[begin:stop]
        if names:
            domain, name, overload = (identity[number] for number in names)
            if message == "Node":
                if name == _ENGINE:
                    raise ValueError(f"its node {_ENGINE.decode()} names files of its own")
                self._calls[domain, name, overload] += 1
            else:
                self._bodies[domain, name, overload] = self._calls
                self._calls = around

    def check_functions(self) -> None:
        """
        Raises:
            ValueError: a function calls itself, also by way of others, or all calls make too many nodes.
        """
        sizes: dict[_Function, int] = {}
        if self._bodies and self._size(self._calls, sizes, 0) > _MOST_NODES:
            raise ValueError(f"its functions make more than {_MOST_NODES:,} nodes")

    def _size(self, calls: collections.Counter[_Function], sizes: dict[_Function, int], depth: int) -> int:
        """Nodes that a body has once all functions are put in."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"functions that call themselves, or nested deeper than {_MAX_DEPTH}")
        for called in calls:
            if called not in sizes:
                sizes[called] = self._size(self._bodies[called], sizes, depth + 1) if called in self._bodies else 1
        return sum(count * sizes[called] for called, count in calls.items())

    def _fields_as_text(self, start: int, end: int) -> Iterator[tuple[int, str]]:
        for number, begin, stop in self._fields(start, end):
            yield number, self._data[begin:stop].decode()

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(field number, begin, end) of each length-delimited field of the message in data[start:end]."""
        data, position = self._data, start
        while position < end:
            key, position = _varint(data, position)
            if key > _MAX_KEY or key < 8:
                raise ValueError(f"no field has the key {key} at byte {position}")
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
            kind = key & 7
            if kind == _BYTES:
                size, position = _varint(data, position)
                if size > end - position:
                    raise ValueError(f"a field at byte {position} runs past its message")
                yield key >> 3, position, position + size
                position += size
            elif kind == _VARINT:
                _, position = _varint(data, position)
            elif kind in (_FIXED64, _FIXED32):
                position += 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"unknown wire type {kind} at byte {position}")
        if position != end:
            raise ValueError(f"a message ends at byte {position} instead of {end}")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {position} is longer than 64 bits")
