"""Reads just enough of an ONNX file to know which other files it points to, without the onnx package.

onnxruntime opens the external-data files a model names, so a bundle from elsewhere must not name files outside its
folder. This walks the protocol-buffer fields that can hold tensors and nothing else.
Field numbers: onnx/onnx.proto of the ONNX project; wire format: the Protocol Buffers encoding guide.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from onnxpress.runtime.errors import InvalidBundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64
_MAX_KEY = 2**32 - 1  # protobuf's C++ reader drops the bits above, so that a larger key would be another field to it

# message -> {field number: message of that field}; fields that cannot lead to a tensor are skipped.
_TENSOR_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
}


def external_data_locations(path: Path) -> set[str]:
    """Every file name that tensors of the ONNX file at `path` point to, as written there.

    Raises:
        InvalidBundleError: the file is empty or not a protocol-buffer message.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return set(_locations(data, 0, len(data), "Model", 0))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InvalidBundleError(f"{path} is not a readable ONNX file ({error}); export the bundle again") from error


def _locations(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"graphs nested deeper than {_MAX_DEPTH}")
    paths = _TENSOR_PATHS[message]
    for number, begin, stop in _fields(data, start, end):
        inner = paths.get(number)
        if inner == "ExternalData":
            entry = dict(_fields_as_text(data, begin, stop))
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif inner is not None:
            yield from _locations(data, begin, stop, inner, depth + 1)


def _fields_as_text(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, str]]:
    for number, begin, stop in _fields(data, start, end):
        yield number, data[begin:stop].decode()


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, begin, end) of each length-delimited field of the message in data[start:end]."""
    position = start
    while position < end:
        key, position = _varint(data, position)
        if key > _MAX_KEY:
            raise ValueError(f"no field has the key {key} at byte {position}")
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
