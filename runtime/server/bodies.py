"""What bodies of requests and answers have in common."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from onnxpress.runtime.errors import InferenceError
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.settings import Limits


class Body(BaseModel):
    """A request's body. A field that is not known is an error: what is passed over in silence misleads. So is a number
    in quotes, or one that no float64 holds."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class Usage(BaseModel):
    """Tokens that were read: of all texts, after they were cut to what the model reads, special tokens included."""

    prompt_tokens: int
    total_tokens: int


MOST = 2**31 - 1
"""Of a number in a body that has no limit of its own: what libraries keep in 32 bits."""


def with_example(value: dict[str, Any]) -> ConfigDict:
    """The configuration of a model that the documentation shows with this value."""
    return ConfigDict(json_schema_extra={"examples": [value]})


Name = Annotated[
    str | None,
    Field(description="Which of the models (see `/v1/models`); not needed where one alone fits the route."),
]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(texts)" if isinstance(value, list) else None


TextOrTexts = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[Texts, Tag("(texts)")],
    Discriminator(_kind, "text_or_texts", "a string or a list of strings"),
]
"""One text, which gets one result; or a list, which gets a list in its order."""


def texts_of(given: str | list[str]) -> list[str]:
    """A list in any case."""
    return [given] if isinstance(given, str) else given


def usage_of(tokens: int) -> dict[str, int]:
    """`Usage` of what only reads."""
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def check_finite(numbers: npt.ArrayLike) -> None:
    """
    Raises:
        InferenceError: a number of an answer is none, which JSON cannot say.
    """
    if not np.isfinite(numbers).all():
        raise InferenceError("the model gave a number that is not finite; its variant may overflow")


def json_response(content: Any) -> Response:
    """An answer as it is: routes make what their documented models say, and floats of numpy arrays keep their type.
    Dataclasses become objects."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def check_items(count: int, limits: Limits, param: str) -> None:
    """
    Raises:
        RequestError: a request has none, or more than allowed.
    """
    if count < 1:
        raise RequestError(400, f"{param} is empty; give at least one", param=param, code="empty")
    if count > limits.items:
        raise RequestError(
            400, f"{param} has {count:,}; at most {limits.items:,} fit one request", param=param, code="too_many_items"
        )
