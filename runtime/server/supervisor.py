"""The parent of several worker processes: starts them, replaces those that die or hang, and ends them in peace.

It binds the sockets and serves nothing itself. Connections wait at the sockets, not at a worker: while a worker is
replaced the others accept them, and while none is there they wait.

uvicorn's own supervisor (uvicorn.supervisors.Multiprocess) is not used. It asks a thread of each worker for signs of
life, which goes on when the event loop hangs; waits on one worker at a time, so that a hung one delays the replacement
of a dead one; announces neither readiness nor why a start failed; waits without limit for workers that end; and knows
nothing of the metrics of the dead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server.accepting import Counts
from onnxpress.runtime.server.listening import address_of
from onnxpress.runtime.server.running import STUCK_SECONDS, announce
from onnxpress.runtime.server.settings import ServerSettings
from onnxpress.runtime.server.worker_process import StartError, WorkerProcess, describe

_LOG = logging.getLogger("onnxpress.server")
_LONGEST_PAUSE_SECONDS = 60.0
"""Between attempts to start a worker."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def supervise(settings: ServerSettings, sockets: Sequence[socket.socket]) -> int:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT, which lets them finish; a second one ends at
    once. SIGHUP replaces all of them, one after the other, without refusing a request.

    Args:
        settings: of the server.
        sockets: bound, not listening.

    Returns:
        the exit status: 0, or 1 where a worker had to be killed at the end.

    Raises:
        StartError: no worker can start.
        InvalidInputError: there is no folder for what workers count; or this is Windows.
    """
    if sys.platform == "win32":
        raise InvalidInputError("several workers need a system other than Windows; give workers = 1")
    try:
        metrics = Path(tempfile.mkdtemp(prefix="onnxpress-metrics-"))
    except OSError as error:
        raise InvalidInputError(
            f"workers need a folder for their metrics, and none can be made in {tempfile.gettempdir()}: "
            f"{error.strerror}; set TMPDIR to one that can be written to"
        ) from error
    try:
        return asyncio.run(_Supervisor(settings, sockets, metrics).run())
    finally:
        shutil.rmtree(metrics, ignore_errors=True)


class _Place:
    """One of the workers that there are to be, whichever process it is at the time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: WorkerProcess | None = None
        self.filled = asyncio.Event()
        """Once a worker has been ready in it."""
        self.filling = asyncio.Lock()
        """Held by who starts one for it."""


class _Supervisor:
    def __init__(self, settings: ServerSettings, sockets: Sequence[socket.socket], metrics: Path) -> None:
        self._settings, self._sockets, self._metrics = settings, sockets, metrics
        self._counts = metrics / "connections"
        self._places = [_Place(number) for number in range(settings.workers)]
        self._alive: dict[WorkerProcess, asyncio.Task[None]] = {}
        """All processes, and what watches each."""
        self._told: asyncio.Future[None]
        """Done when all is to end; an exception in it is why none could start."""
        self._failures = 0
        self._renewal: asyncio.Task[None] | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._told = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._be_told, number)
        loop.add_signal_handler(signal.SIGHUP, self._renew_all)
        keepers = [asyncio.create_task(self._keep(place)) for place in self._places]
        announcing = asyncio.create_task(self._announce())
        try:
            await self._told
        except StartError:
            await self._kill_all()
            raise
        finally:
            for task in (*keepers, announcing, *([self._renewal] if self._renewal else [])):
                task.cancel()
        return await self._end()

    def _be_told(self, number: int) -> None:
        if self._told.done():
            for worker in self._alive:
                worker.kill()
            shutil.rmtree(self._metrics, ignore_errors=True)
            os._exit(128 + number)
        self._told.set_result(None)

    async def _announce(self) -> None:
        for place in self._places:
            await place.filled.wait()
        announce(self._settings, address_of(self._sockets, self._settings))

    async def _start(self, place: _Place) -> WorkerProcess:
        """A process that is ready.

        Raises:
            StartError: it did not become so.
        """
        # Shielded, so that a process which is being made when all ends is known, and ended.
        worker = await asyncio.shield(asyncio.create_task(self._make(place)))
        await worker.wait_until_ready()
        return worker

    async def _make(self, place: _Place) -> WorkerProcess:
        try:
            self._metrics.mkdir(exist_ok=True)  # the system may tidy up its temporary files
            if not self._counts.exists():
                Counts.make(self._counts, len(self._places))
            worker = await WorkerProcess.start(
                self._settings, self._sockets, (self._counts, place.number), {METRICS_FOLDER: str(self._metrics)}
            )
        except OSError as error:
            raise StartError(f"no process can be started for a worker: {error.strerror}", is_told=False) from error
        self._alive[worker] = asyncio.create_task(self._watch(worker, place))
        if self._told.done():
            worker.kill()
        return worker

    async def _watch(self, worker: WorkerProcess, place: _Place) -> None:
        await worker.wait(self._settings.worker_timeout_seconds)
        mark_process_dead(worker.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        del self._alive[worker]
        if place.worker is worker and self._counts.exists():
            Counts(self._counts).write(place.number, None)

    async def _keep(self, place: _Place) -> None:
        """See that there is always a worker."""
        pause = 0.0
        while True:
            try:
                async with place.filling:
                    if place.worker not in self._alive:  # else a renewal was faster
                        place.worker = await self._start(place)
            except StartError as error:
                if self._gives_up(error):
                    return
                pause = min(max(1.0, 2 * pause), _LONGEST_PAUSE_SECONDS)
                _LOG.error("%s; the next attempt is in %.0f seconds", error, pause)
                await asyncio.sleep(pause)
                continue
            pause = 0.0
            place.filled.set()
            worker = place.worker
            while worker in self._alive:
                await asyncio.wait({self._alive[worker]})
                worker = place.worker  # after a renewal it is another one
            assert worker is not None
            _LOG.error("worker %d ended (%s), it is replaced", worker.pid, describe(worker.status))

    def _gives_up(self, error: StartError) -> bool:
        """Whether none has ever been ready, and the next would not be either."""
        self._failures += 1
        if any(place.filled.is_set() for place in self._places):
            return False
        if not self._told.done() and (error.is_told or self._failures >= len(self._places)):
            self._told.set_exception(error)
        return self._told.done()

    def _renew_all(self) -> None:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        _LOG.info("all workers are replaced, one after the other")
        for place in self._places:
            async with place.filling:
                old = place.worker
                if old is None:
                    continue
                try:
                    place.worker = await self._start(place)
                except StartError as error:
                    _LOG.error("the workers that are there go on, for a new one cannot start: %s", error)
                    return
            watching = self._alive.get(old)
            old.tell_to_end(others_go_on=True)
            if watching is not None and not await self._wait_for({watching}):
                old.kill()
        _LOG.info("all workers are new")

    async def _wait_for(self, watching: set[asyncio.Task[None]]) -> bool:
        _, late = await asyncio.wait(watching, timeout=self._settings.drain_seconds + STUCK_SECONDS + 5.0)
        return not late

    async def _end(self) -> int:
        for listening in self._sockets:  # the workers have them, and the last to end closes the port
            listening.close()
        for worker in self._alive:
            if worker.is_ready:
                worker.tell_to_end(others_go_on=False)
            else:
                worker.kill()
        watching = set(self._alive.values())
        if not watching or await self._wait_for(watching):
            return 0
        _LOG.error("workers that did not end in time are killed: %s", ", ".join(str(w.pid) for w in self._alive))
        await self._kill_all()
        return 1

    async def _kill_all(self) -> None:
        for worker in self._alive:
            worker.kill()
        if watching := set(self._alive.values()):
            await asyncio.wait(watching)
