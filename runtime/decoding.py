"""JSON objects to frozen dataclasses, strictly: every key known, every required key there, every type as declared.

Used for files onnxpress itself writes (manifests, measurements). Raises `ValueError` with the place, such as
`variants[1].size_bytes: expected int, got str`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def decode(cls: type[T], data: Any, where: str = "", *, finite: bool = True) -> T:
    """Build the dataclass `cls` from parsed JSON.

    Args:
        cls: a dataclass.
        data: parsed JSON.
        where: it is, for errors.
        finite: refuse numbers that are infinite or none.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type; the text begins with the place.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the document'}: expected an object, got {type(data).__name__}")
    hints, fields = _fields_of(typing.cast(type, cls))
    at = f"{where}." if where else ""
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"{at}{unknown[0]}: unknown key")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{at}{name}", finite)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{at}{name}: missing")
    return cls(**values)


@functools.cache
def _fields_of(cls: type) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    return typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}


def _convert(hint: Any, value: Any, where: str, finite: bool) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where, finite)
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, where)
        return tuple(_convert(arguments[0], item, f"{where}[{index}]", finite) for index, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        return {key: _convert(arguments[1], item, f"{where}.{key}", finite) for key, item in value.items()}
    if origin is typing.Literal:
        _expect(value in arguments, " or ".join(map(repr, arguments)), value, where)
        return value
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value, where, finite=finite)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float):
        _expect(math.isfinite(value) or not finite, "a finite number", value, where)
    _expect(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), hint.__name__, value, where)
    return value


def _expect(condition: bool, expected: str, value: Any, where: str) -> None:
    if not condition:
        shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
        raise ValueError(f"{where}: expected {expected}, got {shown[:80]}")
