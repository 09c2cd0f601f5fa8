"""Errors as the OpenAI API has them: `{"error": {"message", "type", "param", "code"}}`, with a status for each kind."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
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
_RETRY_SECONDS = 1


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

    message: str
    type: str
    param: str | None = None
    code: str | None = None


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
            retry_after = _RETRY_SECONDS if kind.retry else None
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


def add_error_handlers(app: FastAPI) -> None:
    """Whatever happens in a route becomes such an answer."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return error_response(request_error(error))

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("a request failed", exc_info=error)
        return error_response(request_error(error))

    async def unusable(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(_of_validation(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = "not_found" if error.status_code == 404 else None
        response = error_response(RequestError(error.status_code, str(error.detail), code=code))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(OnnxpressError, known)
    app.add_exception_handler(RequestValidationError, unusable)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)


def _of_validation(error: RequestValidationError) -> RequestError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if not str(part).startswith("function-"))
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return RequestError(400, message, code="invalid_body", param=place or None)
