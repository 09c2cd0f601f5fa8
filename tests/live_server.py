"""A server on a free port of this machine: uvicorn in a thread, set up as `onnxpress serve` does, over any app."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from onnxpress.runtime.server.connections import uvicorn_options
from onnxpress.runtime.server.settings import Limits
from tests.waiting import until

PATIENCE = 20.0
"""Seconds after which what should happen has not."""


@dataclasses.dataclass
class LiveServer:
    """A server that runs."""

    port: int
    server: uvicorn.Server
    refusals: list[str]
    """Codes of what was refused before it was a request."""

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self.server.server_state.connections)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A client's end of a connection."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", self.port))
        return client


@contextlib.contextmanager
def serve(app: Any, limits: Limits | None = None, **options: Any) -> Iterator[LiveServer]:
    """
    Args:
        app: an ASGI application.
        limits: of connections.
        options: of `uvicorn.Config`, such as http="h11" classes.
    """
    refusals: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    settings = {**uvicorn_options(limits or Limits(), refusals.append), **options}
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, **settings))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield LiveServer(listener.getsockname()[1], server, refusals)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()


def request(path: str = "/", body: bytes | None = None, headers: str = "") -> bytes:
    """A request as it goes over the wire; with a body it is a POST."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def read_answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer, which says how long it is."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(client)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _some(client)
    return int(first.split()[1]), headers, body


def is_closed(client: socket.socket) -> bool:
    """Wait until the server has closed it; False where it sends something instead."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def _some(client: socket.socket) -> bytes:
    data = client.recv(65536)
    assert data, "the connection was closed in the middle of an answer"
    return data
