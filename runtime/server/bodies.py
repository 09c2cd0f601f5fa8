"""What bodies of requests and answers have in common."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel, ConfigDict

from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.settings import Limits


class Body(BaseModel):
    """A request's body. A field that is not known is an error: what is passed over in silence misleads."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def json_response(content: Any) -> Response:
    """An answer as it is: routes make what their documented models say, and floats of numpy arrays keep their type."""
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
