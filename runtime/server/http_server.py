"""uvicorn's server with an end that loses nothing.

Told to end, uvicorn closes its listening socket and every connection without a request at once: what waits to be
accepted is reset, and so is a request that is on its way on a connection kept alive. This server instead
1. says so: `/health/ready` is 503, and every answer closes its connection, so that clients leave by themselves;
2. goes on for a while (`lame_duck_seconds`), until balancers have noticed;
3. lets no more connections begin, accepts those that wait, and stops to listen;
4. answers all requests it has, and closes connections on which none has begun to arrive;
5. ends what is left after `drain_seconds` with an error (ending.py), and closes the models.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from onnxpress.runtime.server.accepting import Acceptor, Counts
from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.connections import uvicorn_options
from onnxpress.runtime.server.ending import Ending
from onnxpress.runtime.server.listening import accept_waiting, refuse_new
from onnxpress.runtime.server.settings import ServerSettings
from onnxpress.runtime.server.tls import tls_options

_LOG = logging.getLogger("onnxpress.server")
_HANDSHAKE_SECONDS = 0.1
"""For connections that have begun and not finished when no more may begin: a round trip."""
_LOOK_SECONDS = 0.02
_GOODBYE_SECONDS = 1.0
_ERROR_SECONDS = 1.0
"""For sending errors to those whose requests are given up."""


class _Connection:
    """What uvicorn's connections are to know besides: whether a request has begun to arrive, and since when it is
    there. A mixin, because which class uvicorn uses depends on what is installed."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    """The last request and its answer."""
    tell: Callable[[], None]
    """Called when the number of connections has changed."""
    begun = False
    since = 0.0
    closing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self.since = self.loop.time()
        self.tell()

    def data_received(self, data: bytes) -> None:
        self.begun = True
        super().data_received(data)  # type: ignore[misc]

    def on_response_complete(self) -> None:
        self.begun = False
        super().on_response_complete()  # type: ignore[misc]

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)  # type: ignore[misc]
        # uvicorn leaves the timer of a connection that was reset, which holds all of it until it runs out.
        self._unset_keepalive_if_required()  # type: ignore[attr-defined]
        self.tell()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def quiet(self) -> bool:
        """Whether no byte of a request is here, read or unread."""
        return not self.begun and not self.busy and not _has_unread(self.transport)

    def end_closing(self, now: float) -> None:
        """All has been written, but with TLS the other end may never say goodbye."""
        if self.closing_since is None:
            self.closing_since = now
        elif now - self.closing_since >= _GOODBYE_SECONDS and not self.transport.get_write_buffer_size():
            self.transport.abort()


def _has_unread(transport: asyncio.Transport) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    try:
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    except (OSError, ValueError):  # closed already
        return False
    return bool(poll.poll(0))


class HttpServer(uvicorn.Server):
    """Serves an application on sockets that listen already, until `tell_to_end`."""

    def __init__(
        self,
        app: FastAPI,
        settings: ServerSettings,
        sockets: Sequence[socket.socket],
        on_ready: Callable[[], None] | None = None,
        shared: tuple[Counts, int] | None = None,
    ) -> None:
        """
        Args:
            app: of `create_app`; its models are closed at the end.
            settings: timeouts, TLS and the limit of connections.
            sockets: that listen; they are closed at the end.
            on_ready: called in the event loop once requests are answered.
            shared: with other workers on the same sockets (`Acceptor`).
        """
        self._service: Service = app.state.service
        options = uvicorn_options(settings.limits, self._service.metrics.refused)
        bases = (_Connection, options.pop("http"))
        connection: Any = type("Connection", bases, {"tell": lambda _: self._acceptor.tell()})
        self._ending = Ending(app)
        config = uvicorn.Config(
            self._ending,
            **options,
            http=connection,
            # On Windows the usual event loop cannot wait for sockets that it did not make.
            loop="asyncio:SelectorEventLoop" if sys.platform == "win32" else "auto",
            lifespan="on",
            log_config=None,
            access_log=False,
            **tls_options(settings.tls_certificate, settings.tls_key),
        )
        super().__init__(config)
        self._settings = settings
        self._sockets = list(sockets)
        self._on_ready = on_ready
        self._acceptor: Acceptor = Acceptor(
            self._sockets, self._take, lambda: len(self.server_state.connections), shared
        )
        self._arriving: set[asyncio.Task[None]] = set()
        """Connections that are being made."""
        self.has_lost_parent = False
        """Set by a worker process."""
        self._lame_duck = settings.lame_duck_seconds
        self._others_go_on = False
        self._told: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self.should_exit

    def tell_to_end(self, *, now: bool = False, others_go_on: bool = False) -> None:
        """Begin the end, if it has not begun. From any thread, or a signal's handler.

        Args:
            now: without taking connections for a while.
            others_go_on: other processes listen on the same sockets and go on, so that those are left as they are.
        """
        if self.should_exit:
            return
        self.should_exit = self._ending.begun = True
        self._service.phase = "draining"
        self._others_go_on = others_go_on
        if now or others_go_on:
            self._lame_duck = 0.0
        if self._loop is not None and self._told is not None:
            self._loop.call_soon_threadsafe(self._told.set)

    def serve_until_told(self) -> None:
        """Run the event loop until all has ended."""
        self.run([])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the affair of whoever runs this, and after a peaceful end none is raised again."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, then `on_ready`."""
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)
        await self.on_tick(0)  # the headers of the first answers
        self._acceptor.start()
        if self._on_ready is not None:
            self._on_ready()

    async def main_loop(self) -> None:
        """Wait until told, and keep the time in answers' headers."""
        assert self._told is not None
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The steps above."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        grace = self._settings.lame_duck_seconds
        for connection in self._connections():
            if connection.busy:  # also where the answer has begun
                connection.cycle.keep_alive = False
        await asyncio.sleep(self._lame_duck)
        await self._stop_listening()
        while self.server_state.connections or self.server_state.tasks or self._arriving:
            now = loop.time()
            if now - began >= self._settings.drain_seconds:
                await self._give_up()
                break
            for connection in self._connections():
                if connection.transport.is_closing():
                    connection.end_closing(now)
                # What is new, or was kept alive, has had time enough to bring a request.
                elif now - max(began, connection.since) >= grace and connection.quiet:
                    connection.shutdown()
            await asyncio.sleep(_LOOK_SECONDS)
        await self.lifespan.shutdown()

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)

    async def _stop_listening(self) -> None:
        if not self._others_go_on:
            refuse_new(self._sockets)
            await asyncio.sleep(_HANDSHAKE_SECONDS)
        self._acceptor.stop()
        for listening in self._sockets:
            for accepted in () if self._others_go_on else accept_waiting(listening):
                self._take(accepted)
            listening.close()
        if self._arriving:  # from now on all connections that there are can be seen
            await asyncio.wait(self._arriving, timeout=_HANDSHAKE_SECONDS)

    def _take(self, accepted: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(accepted))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_connection, accepted, ssl=self.config.ssl
            )
        except OSError:  # it was reset meanwhile, or does not speak TLS
            accepted.close()

    def _make_connection(self) -> Any:
        make: Any = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _give_up(self) -> None:
        tasks = [*self.server_state.tasks, *self._arriving]
        _LOG.warning("requests that were not done after drain_seconds are given up: %d", len(tasks))
        self._ending.gives_up = True
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_ERROR_SECONDS)
        for connection in self._connections():
            connection.transport.abort()
        if self.server_state.tasks:  # those that waited for clients who read nothing
            await asyncio.wait(self.server_state.tasks, timeout=_ERROR_SECONDS)
