"""A worker process as its parent has it: started, watched, told to end, killed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxpress.runtime.errors import OnnxpressError
from onnxpress.runtime.server.settings import ServerSettings

_LOG = logging.getLogger("onnxpress.server")
STARTING_SECONDS = 1800.0
"""After which a worker that is not ready is taken for stuck: large models are read, and their weights rearranged."""


class StartError(OnnxpressError):
    """A worker did not begin to serve; the text says why."""

    def __init__(self, message: str, *, is_told: bool) -> None:
        """
        Args:
            message: for a person.
            is_told: the worker said it itself, so that another one would say the same.
        """
        super().__init__(message)
        self.is_told = is_told


class WorkerProcess:
    """One process. Its members are for the event loop that started it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._reader, self._writer = reader, writer
        self._beats = 0
        self._failure: str | None = None
        self._ready = asyncio.Event()
        self._exit = asyncio.create_task(process.wait())
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls,
        settings: ServerSettings,
        sockets: Sequence[socket.socket],
        place: tuple[Path, int],
        environment: Mapping[str, str],
    ) -> WorkerProcess:
        """A fresh interpreter, not a fork: the threads of onnxruntime would not be in one.

        Args:
            settings: of the server.
            sockets: to listen on.
            place: the file of `Counts`, and its place there.
            environment: variables beside those of this process.
        """
        mine, its = socket.socketpair()
        with its:
            shared = [listening.fileno() for listening in sockets]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "onnxpress.runtime.server.worker", str(its.fileno()),
                pass_fds=(its.fileno(), *shared),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **environment},
                process_group=0,  # what a terminal sends to the foreground is for the parent
            )  # fmt: skip
        reader, writer = await asyncio.open_connection(sock=mine)
        begin = {
            "settings": dataclasses.asdict(settings),
            "sockets": shared,
            "counts": str(place[0]),
            "place": place[1],
            "path": sys.path,
        }
        writer.write(json.dumps(begin).encode() + b"\n")
        return cls(process, reader, writer)

    @property
    def is_ready(self) -> bool:
        """Whether it has begun to serve."""
        return self._ready.is_set()

    @property
    def status(self) -> int | None:
        """Its exit status, or the signal that ended it as a negative number; None while it runs."""
        return self._process.returncode

    async def wait_until_ready(self) -> None:
        """
        Raises:
            StartError: it ended before, or took too long and was killed.
        """
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._exit}, timeout=STARTING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self.is_ready:
            return
        if not self._exit.done():
            self.kill()
            raise StartError(f"a worker was not ready after {STARTING_SECONDS:.0f} seconds", is_told=False)
        await self._listening  # what it said last
        if self._failure is not None:
            raise StartError(self._failure, is_told=True)
        raise StartError(f"a worker ended while it loaded the models ({describe(self.status)})", is_told=False)

    async def wait(self, silence_seconds: float) -> None:
        """Until it has ended; it is killed when it has given no sign of life for so long.

        Silence is counted in looks at it, a second apart: of a clock, a pause of the parent itself would be silence.
        """
        beats, silent = self._beats, 0.0
        while not self._exit.done():
            await asyncio.wait({self._exit}, timeout=1.0)
            silent = silent + 1 if self.is_ready and self._beats == beats else 0.0
            beats = self._beats
            if silent >= silence_seconds and not self._exit.done():
                _LOG.error("worker %d has given no sign of life for %.0f seconds, it is killed", self.pid, silent)
                self.kill()
                await self._exit
        await self._listening
        self._writer.close()

    def tell_to_end(self, *, others_go_on: bool) -> None:
        """Finish what it has."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(json.dumps({"end": "alone" if others_go_on else "all"}).encode() + b"\n")

    def kill(self) -> None:
        """At once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _listen(self) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                message = json.loads(line)
                self._beats += 1
                self._failure = message.get("failed")
                if "ready" in message:
                    self._ready.set()


def describe(status: int | None) -> str:
    """How a process ended, for a person."""
    if status is None or status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"{name}; is there enough memory?" if name == "SIGKILL" else name
