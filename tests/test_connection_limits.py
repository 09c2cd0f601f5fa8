"""Connections that are slow, too many, or not read: real sockets against uvicorn with both of its parsers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from onnxpress.runtime.server.connections import HEADER_BYTES, uvicorn_options
from onnxpress.runtime.server.limits import RequestLimits
from onnxpress.runtime.server.settings import Limits
from tests.live_server import PATIENCE, LiveServer, is_closed, read_answer, request, serve
from tests.waiting import until

BIG = 50_000_000  # more than all buffers between server and client


@dataclasses.dataclass
class Seen:
    errors: list[Any] = dataclasses.field(default_factory=list)
    go_on: bool = False


def make_app(seen: Seen, limits: Limits) -> Any:
    async def routes(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/wait":
            while not seen.go_on:
                await asyncio.sleep(0.01)
        size = BIG if scope["path"].startswith("/big") else 2
        headers = [(b"content-length", b"%d" % size)]
        if scope["path"] == "/big/last":
            headers.append((b"connection", b"close"))
        status = 200 if scope["method"] in ("GET", "POST") else 405
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if size == BIG:  # in parts, as a stream
            for _ in range(50):
                await send({"type": "http.response.body", "body": bytes(BIG // 50), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    limited = RequestLimits(routes, limits)

    async def look(scope: Any, receive: Any, send: Any) -> None:
        await limited(scope, receive, send)
        seen.errors.append(scope.get("state", {}).get("error"))

    return look


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(params=["auto", "h11"])
def parser(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def serving(seen: Seen, parser: Any, **limits: Any) -> Iterator[LiveServer]:
    chosen = Limits(**limits)
    refusals: list[str] = []
    options = uvicorn_options(chosen, refusals.append, parser=parser)
    with serve(make_app(seen, chosen), chosen, **options) as live:
        live.refusals = refusals
        yield live
        seen.go_on = True


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def good_client(live: LiveServer) -> None:
    """Somebody who does nothing unusual is served."""
    with live.connect() as client:
        client.sendall(request())
        assert read_answer(client)[::2] == (200, b"ok")


def test_headers_that_trickle_end(seen: Seen, parser: str) -> None:
    with serving(seen, parser, header_seconds=0.5) as live, live.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        status, headers, body = read_answer(client)
        assert (status, headers["connection"], code_of(body)) == (408, "close", "headers_late")
        assert is_closed(client)
        until(lambda: live.refusals == ["headers_late"])


def test_headers_of_a_later_request_have_their_time_too(seen: Seen, parser: str) -> None:
    with serving(seen, parser, header_seconds=0.5) as live, live.connect() as client:
        for _ in range(2):
            client.sendall(request())
            assert read_answer(client)[0] == 200
        client.sendall(b"GET / HT")
        assert read_answer(client)[0] == 408


def test_a_connection_without_a_request_is_closed_without_a_word(seen: Seen, parser: str) -> None:
    with serving(seen, parser, header_seconds=0.3) as live, live.connect() as client:
        assert is_closed(client)
        assert live.refusals == []


def test_a_slow_route_is_no_slow_client(seen: Seen, parser: str) -> None:
    with serving(seen, parser, header_seconds=0.2, idle_seconds=0.2) as live, live.connect() as client:
        client.sendall(request("/wait"))
        client.settimeout(0.6)
        with pytest.raises(TimeoutError):
            client.recv(1)
        seen.go_on = True
        client.settimeout(PATIENCE)
        assert read_answer(client)[0] == 200
        assert is_closed(client)  # idle


def test_headers_without_end_are_refused(seen: Seen, parser: str) -> None:
    with serving(seen, parser) as live, live.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(2 * HEADER_BYTES // 1000):
                client.sendall(b"x" * 1000)
        with contextlib.suppress(ConnectionError):
            assert client.recv(100).startswith(b"HTTP/1.1 4")
        until(lambda: live.connections == 0)


def test_trailers_without_end_are_refused(seen: Seen) -> None:
    with serving(seen, "auto") as live, live.connect() as client:
        client.sendall(b"POST /wait HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(2 * HEADER_BYTES // 1000):
                client.sendall(b"X-%d: " % number + b"x" * 1000 + b"\r\n")
        until(lambda: live.connections == 0)


def test_requests_that_are_all_sent_at_once_are_bound(seen: Seen) -> None:
    with serving(seen, "auto") as live, live.connect() as client:
        client.sendall(request("/wait") * 1000)
        assert client.recv(100).startswith(b"HTTP/1.1 400")
        until(lambda: live.connections == 0)


@pytest.mark.parametrize("path", ["/big", "/big/last"])
def test_a_client_that_does_not_read_is_disconnected(seen: Seen, parser: str, path: str) -> None:
    with serving(seen, parser, stalled_seconds=0.5) as live, live.connect(receive_buffer=4096) as client:
        client.sendall(request(path))
        good_client(live)  # nobody waits for it
        until(lambda: len(seen.errors) == 2)
        assert seen.errors[1].code == "client_stalled"
        until(lambda: live.connections == 0)


def test_a_client_that_never_reads_does_not_keep_a_connection_that_failed(parser: Any) -> None:
    """What waits for it in the server is too little for uvicorn to wait."""

    async def fill(scope: Any, receive: Any, send: Any) -> None:
        transport = next(iter(live.server.server_state.connections)).transport  # type: ignore[union-attr]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % BIG)]})
        while not transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
            await asyncio.sleep(0)
        left.append(transport.get_write_buffer_size())

    left: list[int] = []
    limits = Limits(stalled_seconds=0.5)
    options = uvicorn_options(limits, parser=parser)
    with serve(fill, limits, **options) as live, live.connect(receive_buffer=4096) as client:
        client.sendall(request())
        until(lambda: left)
        until(lambda: live.connections == 0)
    assert 0 < left[0] < 65536


def test_a_slow_reader_gets_everything(seen: Seen, parser: str) -> None:
    with serving(seen, parser, stalled_seconds=1.0) as live, live.connect(receive_buffer=65536) as client:
        client.sendall(request("/big"))
        size = 0
        while size < BIG:
            size += len(client.recv(1 << 20))
        assert seen.errors == [None]


def test_beyond_the_limit_requests_are_refused_and_the_health_is_told(seen: Seen, parser: str) -> None:
    with serving(seen, parser, connections=3) as live, contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(live.connect())
            client.sendall(request("/wait"))
        until(lambda: len(live.server.server_state.tasks) == 3)
        other = stack.enter_context(live.connect())
        other.sendall(request())
        status, headers, body = read_answer(other)
        assert (status, headers["retry-after"], code_of(body)) == (503, "1", "too_many_connections")
        other.sendall(request("/health/live"))
        assert read_answer(other)[0] == 200
        seen.go_on = True
        assert read_answer(client)[0] == 200
        client.close()
        until(lambda: live.connections == 3)
        other.sendall(request())  # it is one too many no more
        assert read_answer(other)[0] == 200


def test_far_beyond_the_limit_connections_are_refused(seen: Seen, monkeypatch: pytest.MonkeyPatch, parser: str) -> None:
    monkeypatch.setattr("onnxpress.runtime.server.connections._SPARE", 1)
    with serving(seen, parser, connections=1) as live, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(live.connect()) for _ in range(3)]
        status, headers, body = read_answer(clients[2])
        assert (status, headers["retry-after"], code_of(body)) == (503, "1", "too_many_connections")
        assert live.refusals == ["too_many_connections"]


def test_the_connection_that_rested_longest_makes_room(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, parser: str
) -> None:
    monkeypatch.setattr("onnxpress.runtime.server.connections._REST_SECONDS", 0.0)
    with serving(seen, parser, connections=3) as live, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(live.connect()) for _ in range(3))
        for client in (second, first, third):
            client.sendall(request())
            assert read_answer(client)[0] == 200
        first.sendall(request("/wait"))
        until(lambda: len(live.server.server_state.tasks) == 1)
        good_client(live)
        assert is_closed(second)
        third.sendall(request())
        assert read_answer(third)[0] == 200


def test_a_good_client_is_served_among_many_slow_ones(seen: Seen, parser: str) -> None:
    """Half of them send headers byte by byte, the others a body, and they are as many as may be connected."""
    with serving(seen, parser, connections=100, header_seconds=30.0) as live, contextlib.ExitStack() as stack:
        slow: list[socket.socket] = [stack.enter_context(live.connect()) for _ in range(100)]
        for number, client in enumerate(slow):
            client.sendall(b"GET / HTTP/1.1\r\n" if number % 2 else request("/", b"x" * 100)[:-50])
        until(lambda: len(live.server.server_state.tasks) == 50)
        for _ in range(3):
            with contextlib.suppress(ConnectionError):
                for client in slow:
                    client.sendall(b"X")
            until(lambda: _is_served(live))


def _is_served(live: LiveServer) -> bool:
    """Not in the first second, in which a slow client is like any other."""
    with live.connect() as client:
        client.sendall(request())
        return read_answer(client)[0] == 200


_STRANGE = [
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
    b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\nxyz\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT evil:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
]


def test_what_is_not_http_hurts_nobody(seen: Seen, parser: str, caplog: pytest.LogCaptureFixture) -> None:
    mutations = random.Random(1)
    sent = list(_STRANGE)
    for _ in range(60):
        data = bytearray(mutations.choice(_STRANGE))
        for _ in range(3):
            data[mutations.randrange(len(data))] = mutations.randrange(256)
        sent.append(bytes(data))
    with serving(seen, parser, header_seconds=0.5, body_seconds=0.5) as live:
        for data in sent:
            with live.connect() as client:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while client.recv(65536):
                        pass
        good_client(live)
        until(lambda: live.connections == 0)
    assert "Traceback" not in caplog.text
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
