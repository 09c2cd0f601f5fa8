"""Errors as the OpenAI API has them: `{"error": {"message", "type", "param", "code"}}`, with a status for each kind."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from onnxpress.runtime.errors import (
    BlockedError,
    ClosedError,
    DeadlineExceededError,
    GuardError,
    InvalidInputError,
    OnnxpressError,
    QueueFullError,
    UnsupportedModelError,
)

_LOG = logging.getLogger("onnxpress.server")
MOST_RETRY_SECONDS = 60


class RequestError(OnnxpressError):
    """A request that is answered with an error; the text is for the client."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None,
        param: str | None = None, retry_after: int | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            status: of HTTP.
            message: for a person.
            kind: `type` in the body.
            code: a word for programs.
            param: the field of the request.
            retry_after: seconds after which the same request may work.
        """
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.retry_after = status, kind, code, param, retry_after


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str = Field(description="For a person: what is wrong, with the value, and what to do.")
    type: str = Field(description="The kind of error, as the OpenAI API names them.")
    param: str | None = Field(None, description="The field of the request.")
    code: str | None = Field(None, description="A word for programs.")


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


@dataclasses.dataclass(frozen=True)
class _Kind:
    status: int
    type: str
    code: str
    retry: bool = False


# The first class that fits; onnxpress.runtime.errors says what each means.
_KINDS: tuple[tuple[type[Exception], _Kind], ...] = (
    (QueueFullError, _Kind(429, "rate_limit_error", "queue_full", retry=True)),
    (DeadlineExceededError, _Kind(504, "timeout_error", "timeout")),
    (ClosedError, _Kind(503, "server_error", "shutting_down", retry=True)),
    (GuardError, _Kind(503, "server_error", "guard_failed")),
    (InvalidInputError, _Kind(400, "invalid_request_error", "invalid_input")),
    (UnsupportedModelError, _Kind(400, "invalid_request_error", "unsupported")),
)
_INTERNAL = "the server failed at this request; its log says why, under the request's id"


def request_error(error: Exception) -> RequestError:
    """What a client is told of an exception. Of what is no fault of the client's, only that it happened."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BlockedError):
        return RequestError(400, str(error), kind="content_filter_error", code=f"{error.place}_blocked")
    for cls, kind in _KINDS:
        if isinstance(error, cls):
            retry_after = 1 if kind.retry else None
            return RequestError(kind.status, str(error), kind=kind.type, code=kind.code, retry_after=retry_after)
    return RequestError(500, _INTERNAL, kind="server_error", code="internal")


def error_body(error: RequestError) -> dict[str, Any]:
    """The body of the answer, or of an event of a stream."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: RequestError) -> JSONResponse:
    """The answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that failed; whoever watches the request finds it as `request.state.error`. What is no
    fault of the client's is logged with its traceback."""
    told = request_error(error)
    if told.code == "queue_full":
        call = getattr(request.state, "call", None)
        told.retry_after = retry_seconds(0.0 if call is None else call.served.seconds_of_queue)
    if told.code == "internal":
        _LOG.error("a request failed", exc_info=error)
    request.state.error = told
    return error_response(told)


def retry_seconds(seconds: float) -> int:
    """When to try again, whole seconds from 1 to a minute, where the queue needs so long."""
    return min(MOST_RETRY_SECONDS, max(1, math.ceil(seconds)))


def add_error_handlers(app: FastAPI) -> None:
    """Whatever happens in a route becomes such an answer."""

    async def any_error(request: Request, error: Exception) -> JSONResponse:
        return answer_error(request, error)

    async def of_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        return answer_error(
            request, RequestError(400, f"{place}: {first['msg']}", code="invalid_parameter", param=place or None)
        )

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = answer_error(request, _of_http(request, error))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(OnnxpressError, any_error)
    app.add_exception_handler(RequestValidationError, of_parameters)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, any_error)


def _of_http(request: Request, error: HTTPException) -> RequestError:
    """What the framework itself refuses."""
    path = request.url.path
    if error.status_code == 404:
        return RequestError(404, f"there is no {path[:200]} here; /openapi.json says what there is", code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{path[:200]} takes {allowed}, not {request.method[:20]}"
        return RequestError(405, message, code="method_not_allowed")
    return RequestError(error.status_code, str(error.detail))


def _documented(status: int, description: str, message: str, kind: str, code: str) -> dict[int | str, dict[str, Any]]:
    example = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return {
        status: {
            "model": ErrorBody,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
    }


_INVALID = "invalid_request_error"
ERRORS: dict[int | str, dict[str, Any]] = {
    **_documented(400, "The request cannot be used.", "input is missing", _INVALID, "invalid_body"),
    **_documented(
        404, "There is no such model.", "there is no model 'gpt-5'; there are: minilm", _INVALID, "model_not_found"
    ),
    **_documented(
        413, "The body is too large.", "the body has more than 4,194,304 bytes", _INVALID, "body_too_large"
    ),
    **_documented(
        415,
        "The body is not said to be JSON.",
        "send the header Content-Type: application/json, not 'text/plain'",
        _INVALID,
        "not_json",
    ),
    **_documented(
        429,
        "Too many requests wait. `Retry-After` says in how many seconds the same one may work.",
        "512 sequences are waiting and 512 may; try again later",
        "rate_limit_error",
        "queue_full",
    ),
    **_documented(500, "The server failed.", _INTERNAL, "server_error", "internal"),
    **_documented(
        503, "The server is about to end.", "this runner is closed; make a new one", "server_error", "shutting_down"
    ),
    **_documented(504, "The time that a request may take has passed.", "no answer within the time allowed",
                  "timeout_error", "timeout"),
}  # fmt: skip
"""What every route that runs a model may answer, for its documentation."""
