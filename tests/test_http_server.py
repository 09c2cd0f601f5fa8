"""How the HTTP server ends: in this process, with an application that does as the tests want."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server import http_server, listening
from onnxpress.runtime.server.http_server import HttpServer
from onnxpress.runtime.server.metrics import Metrics
from onnxpress.runtime.server.routes import health
from onnxpress.runtime.server.settings import ServerSettings
from tests.served import WAIT_SECONDS
from tests.waiting import until


class Running:
    """A server in a thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self.app = make_app(settings)
        self.opened: list[socket.socket] = []
        sockets = listening.bind(settings)
        listening.start_listening(sockets, settings)
        self.port = sockets[0].getsockname()[1]
        ready = threading.Event()
        self.server = HttpServer(self.app, settings, sockets, ready.set)
        self.thread = threading.Thread(target=self.server.serve_until_told)
        self.thread.start()
        assert ready.wait(WAIT_SECONDS)

    def connect(self) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        connection.connect()
        self.opened.append(connection.sock)
        return connection

    def refuses(self) -> bool:
        """Whether it has stopped to listen. On Linux a connection that begins shortly before is refused a second
        later."""
        try:
            socket.create_connection(("127.0.0.1", self.port), WAIT_SECONDS).close()
        except OSError:
            return True
        return False

    def join(self) -> None:
        self.thread.join(WAIT_SECONDS)
        assert not self.thread.is_alive()


def make_app(settings: ServerSettings) -> FastAPI:
    """Routes that take as long as a test wants."""
    app = FastAPI()
    app.include_router(health.ROUTER)
    app.state.service = SimpleNamespace(settings=settings, phase="ready", metrics=Metrics())
    app.state.entered = threading.Semaphore(0)
    app.state.released = asyncio.Event()

    @app.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        app.state.entered.release()
        return PlainTextResponse(await request.body())

    @app.get("/held")
    async def held() -> PlainTextResponse:
        app.state.entered.release()
        await app.state.released.wait()
        return PlainTextResponse("done")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "data: first\n\n"
            app.state.entered.release()
            await app.state.released.wait()
            yield "data: last\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    return app


@contextlib.contextmanager
def running(*, lame_duck: float = 0.5, drain: float = WAIT_SECONDS) -> Iterator[Running]:
    server = Running(ServerSettings.of(["model"], port=0, lame_duck_seconds=lame_duck, drain_seconds=drain))
    try:
        yield server
    finally:
        server.server.tell_to_end(now=True)
        server.join()
        for opened in server.opened:
            opened.close()


def entered(server: Running) -> None:
    assert server.app.state.entered.acquire(timeout=WAIT_SECONDS)


def release(server: Running) -> None:
    assert server.server._loop is not None
    server.server._loop.call_soon_threadsafe(server.app.state.released.set)


def get(connection: HTTPConnection, path: str) -> tuple[int, str | None, bytes]:
    """Status, whether the connection ends, and the body."""
    connection.request("GET", path)
    return get_answer(connection)


def get_answer(connection: HTTPConnection) -> tuple[int, str | None, bytes]:
    """The same of a request that was sent."""
    response = connection.getresponse()
    return response.status, response.headers["Connection"], response.read()


def test_a_server_that_ends_says_so_and_goes_on_for_a_while() -> None:
    with running(lame_duck=3.0) as server:
        kept = server.connect()
        assert get(kept, "/health/ready") == (200, None, b'{"status":"ready"}')
        server.server.tell_to_end()
        # On a connection that was there, and on a new one.
        assert get(kept, "/health/ready") == (503, "close", b'{"status":"draining"}')
        new = server.connect()
        assert get(new, "/health/live") == (200, "close", b'{"status":"live"}')
        server.join()
        assert server.refuses()


@pytest.mark.parametrize("protocol", [AutoHTTPProtocol, H11Protocol])  # the second where httptools is missing
def test_a_request_that_is_half_here_is_answered(
    protocol: type[asyncio.Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = http_server.uvicorn_options
    monkeypatch.setattr(http_server, "uvicorn_options", lambda *given: {**options(*given), "http": protocol})
    with running(lame_duck=0.2) as server:
        sent = server.connect()
        sent.putrequest("POST", "/echo")
        sent.putheader("Content-Length", "10")
        sent.endheaders(b"01234")
        entered(server)
        silent, kept = server.connect(), server.connect()
        half = server.connect().sock
        half.sendall(b"GET /health/live HTTP/1.1\r\nHost")
        get(kept, "/health/live")
        server.server.tell_to_end()
        until(server.refuses)
        # Those without a request are closed in peace, with nothing said.
        assert silent.sock.recv(1) == b""
        assert kept.sock.recv(1) == b""
        half.sendall(b": here\r\n\r\n")
        received = b""
        while more := half.recv(4096):
            received += more
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in received
        assert received.endswith(b'{"status":"live"}')
        sent.send(b"56789")
        response = sent.getresponse()
        assert (response.status, response.headers["Connection"]) == (200, "close")
        assert response.read() == b"0123456789"
        server.join()


def test_what_was_accepted_is_finished() -> None:
    with running(lame_duck=0.1) as server:
        held, stream = server.connect(), server.connect()
        held.request("GET", "/held")
        stream.request("GET", "/stream")
        entered(server)
        entered(server)
        server.server.tell_to_end()
        until(server.refuses)
        assert server.thread.is_alive()
        release(server)
        response = held.getresponse()
        assert (response.status, response.headers["Connection"], response.read()) == (200, "close", b"done")
        assert stream.getresponse().read() == b"data: first\n\ndata: last\n\n"
        server.join()


def test_what_is_not_done_in_time_gets_an_error() -> None:
    with running(lame_duck=0.0, drain=1.0) as server:
        held, stream, sent = server.connect(), server.connect(), server.connect()
        held.request("GET", "/held")
        stream.request("GET", "/stream")
        sent.putrequest("POST", "/echo")
        sent.putheader("Content-Length", "10")
        sent.endheaders(b"01234")
        for _ in range(3):
            entered(server)
        server.server.tell_to_end()
        for connection in (held, sent):
            response = connection.getresponse()
            assert (response.status, response.headers["Connection"]) == (503, "close")
            assert response.headers["Retry-After"] == "1"
            assert json.loads(response.read())["error"]["code"] == "shutting_down"
        first, error, rest = stream.getresponse().read().split(b"\n\n")
        assert (first, rest) == (b"data: first", b"")
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
        server.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_the_same_with_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -out {certificate} -keyout {key}"
    subprocess.run(command.split(), check=True, capture_output=True)
    settings = ServerSettings.of(
        ["model"], port=0, lame_duck_seconds=0.5, tls_certificate=str(certificate), tls_key=str(key)
    )
    server = Running(settings)
    trusted = ssl.create_default_context(cafile=certificate)
    trusted.check_hostname = False
    kept = HTTPSConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS, context=trusted)
    held = HTTPSConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS, context=trusted)
    assert get(kept, "/health/ready") == (200, None, b'{"status":"ready"}')
    plain = server.connect()
    plain.request("GET", "/health/ready")  # is no TLS, and disturbs nobody
    held.request("GET", "/held")
    entered(server)
    server.server.tell_to_end()
    until(server.refuses)
    release(server)
    assert get_answer(held) == (200, "close", b"done")
    server.join()
    for connection in (kept, held, *server.opened):
        connection.close()


def test_connections_that_nobody_has_accepted_yet_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_HANDSHAKE_SECONDS", 0.0)  # in which it would accept them as ever
    with running(lame_duck=0.0) as server:
        waiting: list[HTTPConnection] = []

        def hold_up() -> None:
            """In the event loop: requests arrive while it can accept none, and then it is told to end."""
            for _ in range(120):
                connection = server.connect()
                connection.request("GET", "/health/live")
                waiting.append(connection)
            server.server.tell_to_end()

        assert server.server._loop is not None
        server.server._loop.call_soon_threadsafe(hold_up)
        server.join()
        for connection in waiting:
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"status":"live"}')


def test_no_connection_begins_between_the_last_that_is_accepted_and_the_end() -> None:
    settings = ServerSettings.of(["model"], port=0)
    sockets = listening.bind(settings)
    listening.start_listening(sockets, settings)
    address = sockets[0].getsockname()
    before = socket.create_connection(address, WAIT_SECONDS)
    listening.refuse_new(sockets)
    with pytest.raises(TimeoutError):
        socket.create_connection(address, 0.2)
    (accepted,) = listening.accept_waiting(sockets[0])
    before.sendall(b"here")
    accepted.settimeout(WAIT_SECONDS)
    assert accepted.recv(10) == b"here"
    for opened in (before, accepted, *sockets):
        opened.close()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidInputError, match=rf"port {port} of 127\.0\.0\.1 is taken by another process"):
            listening.bind(ServerSettings.of(["model"], port=port))
    # Two that start at the same time: both have bound it, one listens.
    first = listening.bind(ServerSettings.of(["model"], port=0))
    settings = ServerSettings.of(["model"], port=first[0].getsockname()[1])
    second = listening.bind(settings)
    listening.start_listening(first, settings)
    with pytest.raises(InvalidInputError, match="is taken by another process"):
        listening.start_listening(second, settings)
    for bound in (*first, *second):
        bound.close()


def test_addresses_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match=r"192\.0\.2\.1 is no address of this machine"):
        listening.bind(ServerSettings.of(["model"], host="192.0.2.1", port=0))
    with pytest.raises(InvalidInputError, match=r"the host 'no\.such\.invalid' is not known on this machine"):
        listening.bind(ServerSettings.of(["model"], host="no.such.invalid", port=0))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listening, "_bind", refuse)
    with pytest.raises(InvalidInputError, match=r"port 80 of 127\.0\.0\.1 needs privileges this process lacks"):
        listening.bind(ServerSettings.of(["model"], port=80))


def test_all_addresses_of_a_name_share_a_port() -> None:
    settings = ServerSettings.of(["model"], host="localhost", port=0)
    sockets = listening.bind(settings)
    assert len({bound.getsockname()[1] for bound in sockets}) == 1
    assert listening.address_of(sockets, settings) == f"http://localhost:{sockets[0].getsockname()[1]}"
    for bound in sockets:
        bound.close()
