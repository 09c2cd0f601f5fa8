"""Which names a server answers to, and which web sites may use it from a browser.

A page of any site can send requests to `http://127.0.0.1:8000` from the browser of whoever opens it. Two checks keep
it out: requests that change or compute something must not come from another site's page (`Origin`), and the name that
a request was sent to must be one of this server's (`Host`), because a site can let a name of its own point to this
machine, and then its pages count as ours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from onnxpress.runtime.server.asgi import App, Receive, Scope, Send, refuse
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.settings import ServerSettings

_SAFE = ("GET", "HEAD")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Hosts:
    """Middleware. `/health/` answers to every name: whoever asks for it often knows only an address."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self._app = app
        self._names = served_names(settings)
        self._origins = frozenset(origin.encode("latin-1") for origin in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts = []
        origin = None
        for key, value in scope["headers"]:
            if key == b"host":
                hosts.append(value)
            elif key == b"origin":
                origin = value
        host = hosts[0] if hosts else b""
        if self._names is not None and not scope["path"].startswith("/health/"):
            check_host(hosts, self._names)
        if origin is not None and scope["method"] not in _SAFE:
            self._check_origin(origin, host)

    def _check_origin(self, origin: bytes, host: bytes) -> None:
        # The scheme is not compared: behind a proxy that ends TLS, the page's is https and ours is http.
        if origin.lower().partition(b"://")[2] == host.lower() != b"":
            return
        if origin not in self._origins and b"*" not in self._origins:
            raise RequestError(
                403,
                f"pages of {_shown(origin)} may not use this server; allow it with `origins` of the server's settings",
                code="origin_not_allowed",
            )


def served_names(settings: ServerSettings) -> tuple[frozenset[str], tuple[str, ...]] | None:
    """The names that requests may use.

    Returns:
        whole names, and ends such as `.example.org`, both in lower case; None where any name is fine.
    """
    names = [name.lower() for name in settings.hosts]
    if "*" in names:
        return None
    if is_loopback(settings.host):
        names += [*_LOCAL, bracketed(settings.host)]
    elif not names:
        return None
    whole = frozenset(name for name in names if not name.startswith("*."))
    return whole, tuple(name[1:] for name in names if name.startswith("*."))


def check_host(hosts: Sequence[bytes], names: tuple[frozenset[str], tuple[str, ...]]) -> None:
    """
    Args:
        hosts: all `Host` headers of a request.
        names: as of `served_names`.

    Raises:
        RequestError: it has not one such header, or that names something else.
    """
    whole, ends = names
    name = host_name(hosts[0]) if len(hosts) == 1 else ""
    if name not in whole and not name.endswith(ends or ("\n",)):
        raise RequestError(
            421,
            f"this server does not answer to {_shown(b', '.join(hosts))}; name it in `hosts` of the server's settings",
            code="wrong_host",
        )


def host_name(host: bytes) -> str:
    """The name in a `Host` header, without its port, in lower case."""
    text = host.decode("latin-1").lower()
    name, colon, port = text.rpartition(":")
    if colon and port.isdigit():
        text = name
    return text.removesuffix(".")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def bracketed(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address.lower()}]" if ":" in address else address.lower()


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:100])
