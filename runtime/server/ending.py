"""What answers say while the server ends: that their connection closes, and of requests that are given up, why."""

from __future__ import annotations

import asyncio

import orjson

from onnxpress.runtime.server.asgi import App, Message, Receive, Scope, Send
from onnxpress.runtime.server.errors import RequestError, error_body, error_response

_RETRY_SECONDS = 1


class Ending:
    """ASGI, around an application."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.begun = False
        """Answers that begin from now on close their connections."""
        self.gives_up = False
        """A request whose task is cancelled is answered with 503, or its stream of events ends with that error."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not self.gives_up:
                raise
            await answer.end_with_error(scope, receive)


class _Answer:
    """How far an answer is."""

    def __init__(self, send: Send, ending: Ending) -> None:
        self._send, self._ending = send, ending
        self._started = self._ended = self._is_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            headers = list(message.get("headers", ()))
            self._is_stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            if self._ending.begun:
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        elif not message.get("more_body", False):
            self._ended = True
        await self._send(message)

    async def end_with_error(self, scope: Scope, receive: Receive) -> None:
        error = RequestError(
            503,
            "the server ends and could not finish this request in time; send it again",
            kind="server_error",
            code="shutting_down",
            retry_after=_RETRY_SECONDS,
        )
        if not self._started:
            await error_response(error)(scope, receive, self.send)
        elif self._is_stream and not self._ended:
            event = b"data: " + orjson.dumps(error_body(error)) + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
        # Any other answer that has begun is not what its headers say: the connection is closed with it unfinished.
