"""A route whose body is JSON, read strictly: by one pass from bytes to checked fields, with an error that says what is
wrong. In place of the framework's own way, which first makes Python objects of whatever the body holds, takes NaN, and
solves a graph of dependencies for each request."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from onnxpress.runtime.errors import OnnxpressError
from onnxpress.runtime.server.errors import ERRORS, RequestError, answer_error
from onnxpress.runtime.server.validation import body_error

B = TypeVar("B", bound=BaseModel)


def model_router(tag: str) -> APIRouter:
    """A router for routes that run a model, with their errors documented."""
    return APIRouter(tags=[tag], route_class=JsonRoute, responses=ERRORS)


class JsonRoute(APIRoute):
    """A route with a body takes `body`, a model of pydantic, and may take `request` and `service`; it gives a
    `Response`. Other routes are the framework's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        if self.body_field is None:
            return super().get_route_handler()
        names = set(inspect.signature(self.endpoint).parameters)
        if not names <= {"body", "request", "service"}:
            raise TypeError(f"{self.path} takes {', '.join(names)}; a route here takes body, request and service")
        model: type[BaseModel] = typing.get_type_hints(self.endpoint)["body"]
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            given = {"request": request, "service": request.app.state.service}
            try:
                given["body"] = await read_body(request, model)
                return await endpoint(**{name: given[name] for name in names})
            except (OnnxpressError, HTTPException):
                raise
            # Here and not further out, so that such an answer passes all that lies around the routes, as others do.
            except Exception as error:  # noqa: BLE001
                return answer_error(request, error)

        return handle


async def read_body(request: Request, model: type[B]) -> B:
    """
    Raises:
        RequestError: the body is not said to be JSON, is none, or is not what `model` describes.
    """
    _check_content_type(request.headers.get("content-type", ""))
    try:
        content = await request.body()
    except ClientDisconnect as error:
        message = "the client left before the whole request was there"
        raise RequestError(400, message, code="client_disconnected") from error
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise body_error(error, content, model) from None


def _check_content_type(header: str) -> None:
    """Only JSON, said so: a page of another origin can make a browser send anything else without asking first."""
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    if kind != "application/json":
        found = f"not {header[:80]!r}" if header else "which this request does not have"
        raise RequestError(415, f"send the header Content-Type: application/json, {found}", code="not_json")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise RequestError(415, f"JSON is UTF-8; the charset is {value[:40]!r}", code="not_json")
