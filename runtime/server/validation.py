"""What is wrong with a body, in one sentence: of all that pydantic says about the members of a union, what helps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from onnxpress.runtime.server.errors import RequestError

_MOST_ERRORS = 1000  # listing millions takes seconds
_SHOWN_CHARACTERS = 40
Place = tuple[str | int, ...]

# By the type of pydantic's error: what a value should be.
_WANTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}


def body_error(error: ValidationError, content: bytes, model: type[BaseModel]) -> RequestError:
    """The answer to a body that `model` refused.

    Args:
        error: why.
        content: the body.
        model: its class, for the names of fields.
    """
    if error.error_count() > _MOST_ERRORS:
        return _refusal(f"the body has {error.error_count():,} errors; see /openapi.json for what it may hold", None)
    details = error.errors(include_url=False)
    if details[0]["type"] == "json_invalid":
        reason = details[0].get("ctx", {}).get("error", "")
        return _refusal(f"the body is not JSON: {reason}", None, "invalid_json")
    document = from_json(content)
    placed = [(_place(detail, document), detail) for detail in details]
    # Of a union each member says what it misses. The one that came furthest is meant.
    field = placed[0][0][:1]
    place = max((place for place, _ in placed if place[:1] == field), key=len)
    return _refusal(_sentence(_render(place), [detail for other, detail in placed if other == place], model), place)


def _refusal(message: str, place: Place | None, code: str = "invalid_body") -> RequestError:
    return RequestError(400, message, code=code, param=_render(place) if place else None)


def _place(detail: ErrorDetails, document: Any) -> Place:
    """Where in the body an error is. Pydantic's location has the names of the members of unions too."""
    place: list[str | int] = []
    here: Any = document
    for part in detail["loc"]:
        if isinstance(here, list):
            inside = isinstance(part, int) and part < len(here)
        else:
            inside = isinstance(here, dict) and part in here
        if inside:
            here = here[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        place.append(part)
    return tuple(place)


def _render(place: Place) -> str:
    """`messages[0].content`"""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:200]


def _sentence(name: str, details: Sequence[ErrorDetails], model: type[BaseModel]) -> str:
    first = details[0]
    match first["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            fields = f"; the fields are: {', '.join(model.model_fields)}" if len(first["loc"]) == 1 else ""
            return f"there is no field {name}{fields}"
        case "too_short" if first.get("ctx", {}).get("actual_length") == 0:
            return f"{name} is empty; give at least one"
        case "value_error" | "assertion_error":
            return f"{name}: {first['msg'].partition(', ')[2]}"
    wanted = list(dict.fromkeys(map(_wanted, details)))
    return f"{name or 'the body'} is {_shown(first['input'])}; it should be {' or '.join(wanted)}"


def _wanted(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "literal_error" | "enum":
            return str(context["expected"])
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "greater_than":
            return f"above {context['gt']}"
        case "less_than":
            return f"below {context['lt']}"
        case "too_long":
            return f"a list of at most {context['max_length']:,}"
        case "too_short":
            return f"a list of at least {context['min_length']:,}"
        case "string_too_long":
            return f"at most {context['max_length']:,} characters long"
        case "string_too_short":
            return f"at least {context['min_length']:,} characters long"
    return _WANTED.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value):,}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS:
        return f"a string of {len(value):,} characters"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a huge number"
    return json.dumps(value, ensure_ascii=False)
