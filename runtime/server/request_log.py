"""The outermost middleware: gives each request an id, watches it to its end, then tells the log, the metrics and
traces. What a route did not expect becomes an answer here, so that it is logged under the request's id."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.errors import RequestError, answer_error, request_error
from onnxpress.runtime.server.logs import REQUEST_ID
from onnxpress.runtime.server.request_record import CLIENT_GONE, RequestRecord

_ACCESS = logging.getLogger("onnxpress.access")

HEADER = b"x-request-id"
_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})


class RequestLog:
    """`request.state.request_id` and the header X-Request-Id of the answer are the request's own X-Request-Id where it
    has a plain one, else made."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        metrics, traces = self._service.metrics, self._service.traces
        traced = None if traces is None or scope["path"] in _PROBES else traces.begin(scope)
        metrics.in_flight.inc()
        try:
            await self._answer(exchange)
        finally:
            metrics.in_flight.dec()
            record = exchange.record(None if traced is None else traced.trace_id, self._service.phase)
            metrics.request(record)
            if traced is not None:
                traced.end(record)
            level = _level(record)
            if _ACCESS.isEnabledFor(level):
                # Not `log`, which looks for the caller's line in the source at each request, for nobody.
                extra = {"fields": record.fields()}
                _ACCESS.handle(_ACCESS.makeRecord(_ACCESS.name, level, __file__, 0, "request", (), None, extra=extra))

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            return  # nobody is there to be answered
        # Whatever it is, its client gets an answer and the log says why.
        except Exception as error:
            if exchange.status is not None:
                exchange.scope["state"].setdefault("error", request_error(error))
                raise  # too late for another answer: the server logs it and cuts the connection
            response = answer_error(Request(exchange.scope), error)
            await response(exchange.scope, exchange.receive, exchange.send)


class _Exchange:
    """A request and its answer, watched while they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._complete = False
        self._disconnected = False
        self._started = time.monotonic()
        self._id = _own_id(scope) or secrets.token_hex(16).encode()
        request_id = self._id.decode()
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)  # stays: each request has a task of its own, and its server may log, too

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self._disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = CLIENT_GONE if self._disconnected else message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (HEADER, self._id)]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    def record(self, trace_id: str | None, phase: str) -> RequestRecord:
        method = self.scope["method"]
        status = self.status
        if status is None:  # cancelled: its client has left, or the server ends and gives it up
            status = CLIENT_GONE if self._disconnected else 503
        return RequestRecord.of(
            self.scope["state"],
            method if method in _METHODS else "other",
            getattr(self.scope.get("route"), "path", None),
            status=status,
            seconds=time.monotonic() - self._started,
            started=self._started,
            trace_id=trace_id,
            error=self._error(status, phase),
            disconnected=self._disconnected,
        )

    def _error(self, status: int, phase: str) -> str | None:
        if status == CLIENT_GONE:
            return None
        told: RequestError | None = self.scope["state"].get("error")
        if told is not None and told.code is not None:
            return told.code
        if self.status is None and phase == "draining":
            return "shutting_down"
        return f"http_{status}" if status >= 400 else None


def _own_id(scope: Scope) -> bytes | None:
    """The id that a request brings, where it is plain and short."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value if _PLAIN.fullmatch(value) else None
    return None


def _level(record: RequestRecord) -> int:
    if record.status == 500 or record.error == "internal":
        return logging.ERROR
    if record.status >= 500:
        return logging.WARNING
    if record.route in _PROBES:
        return logging.DEBUG
    return logging.INFO
