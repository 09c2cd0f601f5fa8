"""Bodies, times and clients that leave, over real connections: a small application behind the middleware."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from onnxpress.runtime.server.limits import RequestLimits
from onnxpress.runtime.server.settings import Limits
from tests.live_server import LiveServer, is_closed, read_answer, request, serve
from tests.waiting import until

LIMITS = Limits(body_bytes=1000, bodies_bytes=2500, body_seconds=1.0, seconds=1.0)


@dataclasses.dataclass
class Seen:
    """What went on in the routes."""

    bodies: list[int] = dataclasses.field(default_factory=list)
    begun: list[str] = dataclasses.field(default_factory=list)
    cancelled: list[str] = dataclasses.field(default_factory=list)
    errors: list[Any] = dataclasses.field(default_factory=list)
    go_on: threading.Event = dataclasses.field(default_factory=threading.Event)


def make_app(seen: Seen, limits: Limits) -> FastAPI:
    app = FastAPI()

    @app.post("/count")
    async def count(request: Request) -> dict[str, int]:
        seen.bodies.append(len(await request.body()))
        return {"bytes": seen.bodies[-1]}

    @app.post("/wait")
    async def wait(request: Request) -> dict[str, int]:
        await request.body()
        with note(seen, "wait"):
            while not seen.go_on.is_set():
                await asyncio.sleep(0.01)
        return {}

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            with note(seen, "stream"):
                while True:
                    yield b"data: one more\n\n"
                    await asyncio.sleep(0.01)

        return StreamingResponse(events())

    async def look(scope: Any, receive: Any, send: Any) -> None:
        await limited(scope, receive, send)
        seen.errors.append(scope.get("state", {}).get("error"))

    limited = RequestLimits(app, limits)
    return look  # type: ignore[return-value]


@contextlib.contextmanager
def note(seen: Seen, name: str) -> Iterator[None]:
    seen.begun.append(name)
    try:
        yield
    except BaseException:
        seen.cancelled.append(name)
        raise


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def server(seen: Seen) -> Iterator[LiveServer]:
    with serve(make_app(seen, LIMITS), LIMITS) as live:
        yield live
        seen.go_on.set()


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def chunked(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def test_what_is_allowed_passes_and_the_connection_stays(server: LiveServer) -> None:
    with server.connect() as client:
        for size in (1000, 0, 7):
            client.sendall(request("/count", b"x" * size))
            assert read_answer(client)[::2] == (200, b'{"bytes":%d}' % size)
        client.sendall(chunked("/count") + b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n")
        assert read_answer(client)[2] == b'{"bytes":10}'


def test_a_body_that_is_announced_too_large_is_refused_at_once(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(request("/count", b"x" * 1001)[:-1001])  # not one byte of it
        status, headers, body = read_answer(client)
        assert (status, headers["connection"], code_of(body)) == (413, "close", "body_too_large")
        assert b"1,000 bytes" in body
    assert seen.bodies == []


def test_a_client_that_sends_much_too_much_still_gets_its_answer(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(request("/count", b"x" * 3_000_000))  # more than the buffers of both ends hold
        assert read_answer(client)[0] == 413
        assert is_closed(client)
    assert seen.bodies == []


def test_a_body_without_a_length_is_refused_where_it_gets_too_large(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(chunked("/count"))
        for _ in range(11):
            client.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        status, headers, body = read_answer(client)
        assert (status, headers["connection"], code_of(body)) == (413, "close", "body_too_large")
        with contextlib.suppress(ConnectionError):  # it goes on for ever, and is not read for ever
            while True:
                client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert seen.bodies == []


def test_a_client_that_asks_first_does_not_send_what_is_refused(server: LiveServer) -> None:
    with server.connect() as client:
        client.sendall(request("/count", b"x" * 1001, "Expect: 100-continue\r\n")[:-1001])
        assert read_answer(client)[0] == 413
        assert is_closed(client)


def test_a_body_that_trickles_ends(server: LiveServer) -> None:
    with server.connect() as client:
        client.sendall(request("/count", b"x" * 500)[:-500])
        status, body = 0, b""
        while not status:
            client.sendall(b"x")
            if select.select([client], [], [], 0.1)[0]:  # else a tenth of a second has passed
                status, _, body = read_answer(client)
        assert (status, code_of(body)) == (408, "body_late")


def test_all_bodies_together_are_bound(server: LiveServer, seen: Seen) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(2)]
        for client in clients:
            client.sendall(request("/wait", b"x" * 1000))
        until(lambda: len(seen.begun) == 2)
        third = stack.enter_context(server.connect())
        third.sendall(request("/count", b"x" * 501))
        status, headers, body = read_answer(third)
        assert (status, headers["retry-after"], code_of(body)) == (503, "1", "bodies_full")
        fourth = stack.enter_context(server.connect())
        fourth.sendall(request("/count", b"x" * 499))
        assert read_answer(fourth)[0] == 200
        seen.go_on.set()
        assert [read_answer(client)[0] for client in clients] == [200, 200]
        fourth.sendall(request("/count", b"x" * 1000))  # what they held is free again
        assert read_answer(fourth)[0] == 200


def test_the_work_for_a_client_that_leaves_is_cancelled(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(request("/wait", b"{}"))
        until(lambda: seen.begun)
    until(lambda: seen.errors)
    assert seen.cancelled == ["wait"]
    assert (seen.errors[0].status, seen.errors[0].code) == (499, "client_left")


def test_a_client_that_leaves_while_it_sends_is_no_request(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(request("/count", b"x" * 500)[:-100])
    until(lambda: seen.errors)
    assert (seen.errors[0].code, seen.bodies) == ("client_left", [])


def test_a_stream_ends_where_its_client_leaves(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(request("/stream", b"{}"))
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: seen.errors)
    assert seen.cancelled == ["stream"]


def test_a_route_that_takes_too_long_is_answered_for(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.runtime.server.limits._SPARE_SECONDS", 0.0)
    limits = dataclasses.replace(LIMITS, seconds=0.2)
    with serve(make_app(seen, limits), limits) as live, live.connect() as client:
        client.sendall(request("/wait", b"{}"))
        status, _, body = read_answer(client)
        assert (status, code_of(body), seen.cancelled) == (504, "timeout", ["wait"])
        client.sendall(request("/count", b"abc"))  # and the connection is as good as before
        assert read_answer(client)[2] == b'{"bytes":3}'
        client.sendall(request("/stream", b"{}"))  # whose end is decided elsewhere
        data = b""
        while data.count(b"one more") < 60:  # a hundred a second
            data += client.recv(65536)
        assert seen.cancelled == ["wait"]


def test_the_next_requests_of_one_connection_wait_for_the_first(server: LiveServer, seen: Seen) -> None:
    with server.connect() as client:
        client.sendall(request("/wait", b"{}") + request("/count", b"abc"))
        until(lambda: seen.begun)
        assert seen.bodies == []
        seen.go_on.set()
        assert [read_answer_of(client), read_answer_of(client)] == [b"{}", b'{"bytes":3}']


def read_answer_of(client: socket.socket) -> bytes:
    """Byte by byte, so that nothing of the next answer is read with it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += client.recv(length - len(body))
    return body
