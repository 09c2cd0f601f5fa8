"""Limits of connections, where uvicorn has none: its protocol classes, watched.

uvicorn closes a connection that is idle between two requests, and nothing else: one that sends no request, sends its
headers byte by byte, or does not read its answer stays for ever (a transport that is closed waits until all is
written). Middleware cannot help: it runs when the headers are complete, and never sees the transport. So the protocol
classes get a time for headers, a size for headers, a time in which what was written must be read, and a number of
connections. Where that number is reached, the one that has rested longest gives way; only where all are busy are
requests of new ones refused.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from onnxpress.runtime.server.errors import RequestError, error_body
from onnxpress.runtime.server.limits import CROWDED, STALLED
from onnxpress.runtime.server.settings import Limits

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    _HAS_HTTPTOOLS = True
    _Protocol: TypeAlias = HttpToolsProtocol  # what is used here both classes have, under the same names
else:
    _Protocol = object
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        _HAS_HTTPTOOLS = True
    except ImportError:  # on Windows
        HttpToolsProtocol, _HAS_HTTPTOOLS = object, False

_LOG = logging.getLogger("onnxpress.server")
HEADER_BYTES = 65536
"""Of a request's line, headers and trailers, and of whatever else is no body. About so: what came with the same read
of the socket is not counted."""
_PIPELINED = 16  # requests that a client may send before it has the answer to the first
_SPARE = 64
"""Connections beyond the limit whose requests are read, so that they get an answer, and the health can be asked."""
_REST_SECONDS = 1.0
"""A connection that has waited for its next request for so long may be closed to make room."""
_PHRASES = {408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}


def uvicorn_options(
    limits: Limits, refused: Callable[[str], None] | None = None, *, parser: Literal["auto", "h11"] = "auto"
) -> dict[str, Any]:
    """Arguments of `uvicorn.Config`, of one server, with which the limits of connections hold.

    Args:
        limits: of the settings.
        refused: is told the code of each refusal that no middleware sees, for metrics.
        parser: of HTTP; auto for httptools where it is installed.
    """
    bases = (_Watched, H11Protocol) if parser == "h11" or not _HAS_HTTPTOOLS else (_Counted,)
    return {
        "http": type("LimitedProtocol", bases, {"shared": _Shared(limits, refused or _ignore)}),
        "ws": "none",
        "limit_concurrency": None,  # its answer is plain text without Retry-After, for the health as well
        "timeout_keep_alive": limits.idle_seconds,
        "h11_max_incomplete_event_size": HEADER_BYTES,
        "server_header": False,
    }


@dataclasses.dataclass
class _Shared:
    """What the connections of one server have in common."""

    limits: Limits
    refused: Callable[[str], None]
    resting: dict[_Watched, float] = dataclasses.field(default_factory=dict)
    """Those without a request, since when; the one that has rested longest comes first."""


class _Watched(_Protocol):
    """What is added to either of uvicorn's classes."""

    shared: ClassVar[_Shared]

    _headers: asyncio.TimerHandle | None = None  # runs while headers are awaited that should come now
    _unread: asyncio.TimerHandle | None = None  # runs while the client should read
    _begun = False  # some of the headers are there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._routes, self.app = self.app, self._serve
        self._await_headers()
        if len(self.connections) <= self.shared.limits.connections or self._make_room():
            self.shared.resting[self] = self.loop.time()
        elif len(self.connections) <= self.shared.limits.connections + _SPARE:
            self._is_crowded(True)
        else:
            self.answer(503, "too_many_connections", "too many connections are open; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self.shared.resting.pop(self, None)
        for timer in (self._headers, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        before = self.cycle
        if CROWDED in self.app_state and len(self.connections) <= self.shared.limits.connections:
            self._is_crowded(False)
        super().data_received(data)
        if self.cycle is not before:
            self.shared.resting.pop(self, None)
            self._begun = False
            if self._headers is not None:
                self._headers.cancel()
                self._headers = None
        elif not self.is_busy:
            self._begun = True
            if self._headers is None:
                self._await_headers()

    def on_response_complete(self) -> None:
        """An answer has been written; that does not say that it was read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.closing()
        elif not self.is_busy:
            self.shared.resting[self] = self.loop.time()

    def pause_writing(self) -> None:
        """The client does not read as fast as it gets."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """Nearly all is read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if self.transport.is_closing():
            self.closing()

    def timeout_keep_alive_handler(self) -> None:
        """It was idle for too long."""
        super().timeout_keep_alive_handler()
        self.closing()

    def shutdown(self) -> None:
        """The server ends."""
        super().shutdown()
        if self.transport.is_closing():
            self.closing()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        super().send_400_response(msg)
        self.closing()

    @property
    def is_busy(self) -> bool:
        """It has a request that is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def answer(self, status: int, code: str, message: str) -> None:
        """Refuse what is no request yet, and close."""
        self.shared.refused(code)
        if self.is_busy:  # what is written now would be taken for a part of another answer
            self.transport.abort()
            return
        body = orjson.dumps(error_body(RequestError(status, message, code=code)))
        lines = [
            f"HTTP/1.1 {status} {_PHRASES[status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(["retry-after: 1"] if status == 503 else []),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
        self.closing()

    def closing(self) -> None:
        """It is closed as soon as all is written. That must not depend on the client."""
        if self.transport.get_write_buffer_size():
            self._await_reading()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """The application. Where it fails in the middle of an answer, uvicorn closes the transport and tells nobody."""
        try:
            await self._routes(scope, receive, send)
        finally:
            if self.is_busy:
                self.loop.call_soon(self._failed)

    def _failed(self) -> None:
        if self.transport.is_closing():
            self.closing()

    def _await_headers(self) -> None:
        self._headers = self.loop.call_later(self.shared.limits.header_seconds, self._headers_are_late)

    def _await_reading(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(self.shared.limits.stalled_seconds, self._cut)

    def _headers_are_late(self) -> None:
        if self.transport.is_closing():
            return
        if self._begun:
            seconds = self.shared.limits.header_seconds
            self.answer(408, "headers_late", f"the headers were not complete within {seconds:g} seconds")
        else:  # browsers open connections in reserve, and take such an answer for that to their next request
            self.transport.close()

    def _cut(self) -> None:
        seconds = self.shared.limits.stalled_seconds
        _LOG.info("a client did not read what was sent to it for %g seconds and is disconnected", seconds)
        if self.is_busy:
            self.cycle.scope["state"][STALLED] = True
        else:
            self.shared.refused("client_stalled")
        self.transport.abort()

    def _is_crowded(self, crowded: bool) -> None:
        """Tell the middleware of all requests from now on; each has a copy of this as its state."""
        others = {key: value for key, value in self.app_state.items() if key != CROWDED}
        self.app_state: dict[str, Any] = {**others, CROWDED: True} if crowded else others

    def _make_room(self) -> bool:
        oldest = next(iter(self.shared.resting), None)
        if oldest is None or self.loop.time() - self.shared.resting[oldest] < _REST_SECONDS:
            return False
        del self.shared.resting[oldest]
        oldest.transport.close()
        oldest.closing()
        return True


class _Counted(_Watched, HttpToolsProtocol):
    """Limits of size that h11 has itself. The parser of httptools keeps headers of any size, and any number of requests
    that come at once."""

    _uncounted = 0

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        self._uncounted += len(data)
        super().data_received(data)
        if self._uncounted > HEADER_BYTES and not self.transport.is_closing():
            self.answer(431, "headers_too_large", f"the headers are larger than the {HEADER_BYTES:,} bytes allowed")

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._uncounted = 0
        if len(self.pipeline) >= _PIPELINED:
            raise ValueError("too many requests at once")  # the parser ends, and the connection with it
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of its body; how many there may be is not decided here."""
        self._uncounted = 0
        super().on_body(body)


def _ignore(code: str) -> None:
    pass
