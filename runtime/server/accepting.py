"""Takes connections from sockets that listen, in turn with other workers that have the same sockets.

Whoever wakes first has a connection, and a client keeps it: without more, one of two idle workers got three quarters of
64 connections. So workers tell each other how many they have, in a file that all of them map, and one that has more
than another looks a moment later. Nothing depends on it: where the other is busy or dead, the one that waited accepts.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

_LOG = logging.getLogger("onnxpress.server")
_AT_ONCE = 4
"""Connections that are accepted in one turn of the event loop."""
_TOLERATED = 2
"""Connections more than the worker with the least has."""
_STEP_ASIDE_SECONDS = 0.001
"""For each connection more than that, for which the others may take the next one."""
_LONGEST_ASIDE_SECONDS = 0.025
_NO_DESCRIPTORS_SECONDS = 1.0
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_COUNT = struct.Struct("q")
_ABSENT = 2**62


class Counts:
    """How many connections each worker has: numbers of 8 bytes in a file, each written by one process."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of a file that `make` made.
        """
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @staticmethod
    def make(path: Path, workers: int) -> None:
        """Write the file: no worker is there."""
        path.write_bytes(_COUNT.pack(_ABSENT) * workers)

    def write(self, place: int, count: int | None) -> None:
        """Say how many the worker has; None if it takes no more, or is not there."""
        _COUNT.pack_into(self._map, place * _COUNT.size, _ABSENT if count is None else count)

    def least(self) -> int:
        """That a worker has."""
        return int(min(count for (count,) in _COUNT.iter_unpack(self._map[:])))


class Acceptor:
    """Accepts while the event loop runs, until `stop`."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        take: Callable[[socket.socket], None],
        count: Callable[[], int],
        shared: tuple[Counts, int] | None = None,
    ) -> None:
        """
        Args:
            sockets: that listen and do not block.
            take: gets each connection.
            count: of connections that there are.
            shared: with other workers: what they write, and the place of this one.
        """
        self._sockets = sockets
        self._take, self._count, self._shared = take, count, shared
        self._stopped = False

    def start(self) -> None:
        """In the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.tell()
        for listening in self._sockets:
            self._wait(listening)

    def stop(self) -> None:
        """Leave what comes to others, or in the queue."""
        self._stopped = True
        for listening in self._sockets:
            self._loop.remove_reader(listening)
        if self._shared is not None:
            counts, place = self._shared
            counts.write(place, None)

    def tell(self) -> None:
        """Let the others know how many connections there are."""
        if self._shared is not None and not self._stopped:
            counts, place = self._shared
            counts.write(place, self._count())

    def _wait(self, listening: socket.socket) -> None:
        if not self._stopped:
            self._loop.add_reader(listening, self._arrived, listening)

    def _arrived(self, listening: socket.socket) -> None:
        more = 0 if self._shared is None else self._count() - self._shared[0].least() - _TOLERATED
        if more > 0:
            self._loop.remove_reader(listening)
            aside = min(more * _STEP_ASIDE_SECONDS, _LONGEST_ASIDE_SECONDS)
            self._loop.call_later(aside, self._accept_late, listening)
        else:
            self._accept(listening, 1 if self._shared else _AT_ONCE)

    def _accept_late(self, listening: socket.socket) -> None:
        if not self._stopped:
            self._wait(listening)
            self._accept(listening, _AT_ONCE)

    def _accept(self, listening: socket.socket, most: int) -> None:
        for _ in range(most):
            try:
                connection, _ = listening.accept()
            except OSError as error:
                if error.errno in _SCARCE:
                    _LOG.error("no connection can be accepted: %s", error.strerror)
                    self._loop.remove_reader(listening)
                    self._loop.call_later(_NO_DESCRIPTORS_SECONDS, self._wait, listening)
                break
            connection.setblocking(False)
            self._take(connection)
        self.tell()
