"""Headers that keep a browser from doing more with a page than it is for."""

from __future__ import annotations

from onnxpress.runtime.server.asgi import App, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Everything comes from this server; nothing that stands in the page runs, and no other site shows the page in a
frame."""
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class HtmlHeaders:
    """Middleware. Only what is got can be a page, so that other requests pass by."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_headers(message.get("headers", ()))
            await send(message)

        await self._app(scope, receive, add)


def _with_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A route that has its own stricter or wider policy keeps it."""
    names = dict(headers)
    extra = [_NOSNIFF]
    if names.get(b"content-type", b"").startswith(b"text/html"):
        extra += [header for header in _HEADERS if header[0] not in names]
    return [*headers, *extra]
