"""Server-sent events: answers that leave while they are made.

Knows nothing of what is in an event. A client that does not read stops only its own stream: what is made for it waits
in memory, and no thread waits for it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Scope, Send

from onnxpress.runtime.server.errors import RequestError, error_body, request_error

_LOG = logging.getLogger("onnxpress.server")

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that is complete."""

EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
"""For the OpenAPI document: that an answer may be a stream."""


def event(content: Any) -> bytes:
    """An event whose data is JSON; orjson writes it on one line."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


class EventStream(StreamingResponse):
    """A stream of events, made by an asynchronous generator.

    The generator is closed when the client has left, and in any other case. What it raises before its first event is an
    answer with a status of its own; what it raises later is an event with an `error`, the last one.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        """
        Args:
            events: one or more with each step. Runs only while the response does, so it may hold what must be freed.
        """
        # The second header keeps nginx from collecting events.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events
        self._request_state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """As ASGI has it."""
        self._request_state = scope.setdefault("state", {})
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Called by the base class, which cancels it when the client leaves."""
        async with contextlib.aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _write(send, first)
            try:
                async for written in events:
                    await _write(send, written)
            # The status has left already.
            except Exception as error:  # noqa: BLE001
                await _write(send, event(error_body(self._told(error))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _told(self, error: Exception) -> RequestError:
        told = request_error(error)
        if told.status == 500:
            _LOG.error("a stream failed", exc_info=error)
        self._request_state["error"] = told
        return told


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
