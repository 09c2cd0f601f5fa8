"""What the middleware have in common: the types of ASGI, a header of a request, an answer that is an error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from onnxpress.runtime.server.errors import RequestError, error_response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 << 20


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that name, which is in lower case; None where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def refuse(error: RequestError, scope: Scope, receive: Receive, send: Send, *, body_read: bool = False) -> None:
    """Answer with an error, which whoever watches the request finds as `request.state.error`.

    Where a body was announced and not read, the connection ends with the answer. But a client that is still sending
    would lose the answer if the connection were closed under its hands; so what comes is read and thrown away for a
    short while.

    Args:
        error: that is answered.
        scope, receive, send: of the request.
        body_read: nothing of the body is left.
    """
    scope.setdefault("state", {})["error"] = error.with_traceback(None)  # whose frames would keep the request's memory
    response = error_response(error)
    if body_read or not _has_body(scope):
        await response(scope, receive, send)
        return
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if header(scope, b"expect") is None:  # else it waits with its body, and now will not send it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await _throw_away(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _has_body(scope: Scope) -> bool:
    length = header(scope, b"content-length")
    return header(scope, b"transfer-encoding") is not None or (length is not None and length != b"0")


async def _throw_away(receive: Receive) -> None:
    size = 0
    while size < _LINGER_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):  # the end, or the client has left
            return
