"""The limits of a request that hold for every route: its body, the time it may take, and a client that leaves.

The body is read here, before any route: within its size, its time, and the memory that all bodies may take together.
Then the route runs; where the client leaves, or the time is over, the route's task is cancelled, and with it what it
has in a queue. What a route itself may be asked for is its own affair; those of a connection are in connections.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from onnxpress.runtime.server.asgi import App, Message, Receive, Scope, Send, header, refuse
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.settings import Limits

CROWDED = "crowded"
"""The key of a request's state that is set where its connection is one too many."""
STALLED = "stalled"
"""The same, where its connection was cut because the client did not read."""

_QUICK_SECONDS = 0.05
"""A request that is done by then needs nobody who watches for its client to leave."""
_SPARE_SECONDS = 2.0
"""That a route has beyond the time allowed, to say itself what was late."""


class RequestLimits:
    """Middleware, for one event loop."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._bodies = _Bodies(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(self._limits, self._bodies, scope, receive, send)
        try:
            await passage.run(self._app)
        finally:
            passage.end()


class _Bodies:
    """All bodies that are in memory, from their first byte until their request has ended."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0  # bytes

    def check_announced(self, scope: Scope) -> None:
        """
        Raises:
            RequestError: the body will be too large.
        """
        length = header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > self._limits.body_bytes:
            raise self._too_large()

    def hold(self, size: int, total: int) -> None:
        """Bytes have come.

        Args:
            size: of them.
            total: of the body so far, with them.

        Raises:
            RequestError: the body is too large, or all together are.
        """
        self._held += size
        if total > self._limits.body_bytes:
            raise self._too_large()
        if self._held > self._limits.bodies_bytes:
            raise RequestError(
                503,
                "the requests that are read and served now take all the memory they may; try again later",
                kind="server_error",
                code="bodies_full",
                retry_after=1,
            )

    def let_go(self, size: int) -> None:
        """A request with so many bytes has ended."""
        self._held -= size

    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"the body is larger than the {self._limits.body_bytes:,} bytes allowed; send fewer or shorter texts",
            code="body_too_large",
        )


class _Passage:
    """One request on its way through, and the one timer that it has."""

    __slots__ = (
        "_bodies", "_body", "_done", "_gone", "_limits", "_parts", "_reading", "_receive", "_scope", "_send", "_size",
        "_slow", "_started", "_stop", "_task", "_timer", "_watcher",
    )  # fmt: skip

    def __init__(self, limits: Limits, bodies: _Bodies, scope: Scope, receive: Receive, send: Send) -> None:
        self._limits = limits
        self._bodies = bodies
        self._scope = scope
        self._receive = receive
        self._send = send
        self._parts: list[bytes] = []  # of the body
        self._body: bytes | None = None
        self._size = 0  # of what came of it
        self._reading = True
        self._slow = False
        self._started = False  # the answer
        self._done = False  # it is out
        self._stop: RequestError | None = None  # why the task was cancelled
        self._gone: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._arm(_QUICK_SECONDS, self._not_quick)

    async def run(self, app: App) -> None:
        """Read the body and let it be answered."""
        try:
            self._check_crowd()
            self._bodies.check_announced(self._scope)
            await self._read()
            if self._slow:
                self._look_after()
            await app(self._scope, self._next, self._pass_on)
        except RequestError as error:  # of the reading; those of routes were answered there
            await self._refuse(error)
        except asyncio.CancelledError:
            if self._stop is None or self._task.uncancel() > 0:
                raise
            await self._refuse(self._stop)
        else:
            if self._stop is not None:  # the answer came in that very moment
                self._task.uncancel()

    def end(self) -> None:
        """Leave nothing behind."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._release()

    def _release(self) -> None:
        self._bodies.let_go(self._size)
        self._size = 0

    async def _refuse(self, error: RequestError) -> None:
        self._timer.cancel()
        self._parts.clear()
        self._release()
        if error.status == _LEFT:
            self._scope.setdefault("state", {}).setdefault("error", error)
        elif not self._started:
            await refuse(error, self._scope, self._receive, self._send, body_read=not self._reading)

    # The body

    def _check_crowd(self) -> None:
        if self._scope.get("state", {}).get(CROWDED) and not self._scope["path"].startswith("/health/"):
            raise RequestError(
                503,
                f"{self._limits.connections:,} connections are busy and no more may be; try again later",
                kind="server_error",
                code="too_many_connections",
                retry_after=1,
            )

    async def _read(self) -> None:
        while self._reading:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise self._left()
            part = message.get("body", b"")
            self._reading = message.get("more_body", False)
            if part:
                self._parts.append(part)
                self._size += len(part)
                self._bodies.hold(len(part), self._size)
        self._body = b"".join(self._parts)  # of one part, no copy
        self._parts.clear()

    # What the routes get

    async def _next(self) -> Message:
        """`receive` of the routes: the body, then, when it happens, that the client has left."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._watch()
        return {"type": "http.disconnect"}

    async def _pass_on(self, message: Message) -> None:
        """`send` of the routes."""
        if message["type"] == "http.response.start":
            self._started = True
        elif not message.get("more_body", False):
            self._done = True
        await self._send(message)

    # The time, and the client

    def _arm(self, seconds: float, action: Callable[[], object]) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, action)

    def _not_quick(self) -> None:
        self._slow = True
        if self._reading:
            self._arm(self._limits.body_seconds - _QUICK_SECONDS, self._body_is_late)
        else:
            self._look_after()

    def _look_after(self) -> None:
        """The route is at work, and takes its time."""
        self._timer.cancel()
        self._arm(self._limits.seconds + _SPARE_SECONDS, self._answer_is_late)
        self._watch()

    def _body_is_late(self) -> None:
        message = f"the body was not complete within {self._limits.body_seconds:g} seconds; send it faster"
        self._cancel(RequestError(408, message, code="body_late"))

    def _answer_is_late(self) -> None:
        if not self._started:  # else it is a stream, which ends by the time of its model
            message = f"no answer within {self._limits.seconds:g} seconds; send less at once, or try again later"
            self._cancel(RequestError(504, message, kind="timeout_error", code="timeout"))

    def _watch(self) -> asyncio.Future[None]:
        """Done when the client has left, or has its answer."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
            self._watcher = asyncio.create_task(self._until_gone(self._gone))
        return self._gone

    async def _until_gone(self, gone: asyncio.Future[None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not gone.done():
            gone.set_result(None)
        if not self._done:  # a server says the same once the answer is out
            self._cancel(self._left())

    def _cancel(self, why: RequestError) -> None:
        if self._stop is None:
            self._stop = why
            self._task.cancel()

    def _left(self) -> RequestError:
        """For the log: nobody is there to read it."""
        if self._scope.get("state", {}).get(STALLED):
            return RequestError(_LEFT, "the client did not read its answer and was disconnected", code="client_stalled")
        return RequestError(_LEFT, "the client left before it had its answer", code="client_left")


_LEFT = 499  # no status of HTTP, but what logs of others have for it
