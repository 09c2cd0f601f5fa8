"""The worker threads of this process. All models share them, so two models do not mean twice as many threads.

Each model has a `Lease`, which says how many of its jobs may run at once. There are as many threads as the largest
lease allows. They start when first needed and end with the last lease; none is left when the interpreter exits.
"""

from __future__ import annotations

import atexit
import collections
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from onnxpress.runtime.processes import HomeProcess

T = TypeVar("T")
R = TypeVar("R")
Job = Callable[[], None]
"""Must not raise."""


class _Pool:
    """Threads that take jobs in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)  # threads that wait for a job
        # Reentrant, here and below: a lease that is collected as garbage is given back in whatever thread that happens.
        self._lock = threading.RLock()
        self._threads: list[threading.Thread] = []
        self._sizes: dict[int, int] = {}
        self._ending = False

    def enter(self, key: int, size: int) -> bool:
        """Take part in it. False when it is ending."""
        with self._lock:
            if not self._ending:
                self._sizes[key] = size
            return not self._ending

    def leave(self, key: int) -> bool:
        """Returns whether nobody is left, so that it ends."""
        with self._lock:
            self._sizes.pop(key, None)
            self._ending = not self._sizes
            return self._ending

    def put(self, job: Job) -> bool:
        """Have a job run. False when it is ending and takes no more.

        Raises:
            RuntimeError: there is no thread to run it, and the system gives none; it is not taken.
        """
        with self._lock:
            if self._ending:
                return False
            self._jobs.put(job)
            if not self._idle.acquire(blocking=False) and len(self._threads) < max(self._sizes.values(), default=1):
                name = f"onnxpress-{len(self._threads)}"
                self._start(threading.Thread(target=self._serve, name=name, daemon=True))
            return True

    def _start(self, thread: threading.Thread) -> None:
        """One more for the job that came last; the lock is held. Without it those that are there run the job later."""
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.remove(thread)
            if not self._threads:
                self._jobs.get_nowait()
                raise

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits for a thread."""
        return not self._jobs.empty()

    def end(self, wait: bool) -> None:
        """Let all threads end after the jobs that are there, and wait for that."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if wait and thread is not threading.current_thread():
                thread.join()

    def _serve(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                self._idle.release()
                job = self._jobs.get()
            if job is None:
                return
            job()
            del job  # what it holds must not live until the next one comes


class _Process:
    """What there is once in a process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pool: _Pool | None = None
        self.leases: weakref.WeakSet[Lease] = weakref.WeakSet()


_process = _Process()


class Lease:
    """One user's part in the threads of this process. Safe to call from many threads."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: jobs that may run at once.
        """
        self.size = size
        self.home = HomeProcess()
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._running = 0
        self._waiting: collections.deque[Job] = collections.deque()
        self._drop: weakref.finalize[[_Pool, int, bool], Lease] | None = None

    def submit(self, job: Job) -> None:
        """Have a job run in one of the threads; with others of this lease as long as there are at most `size`.

        Raises:
            ForkError: called in another process than the one it was made in.
            RuntimeError: the system gives no thread, and there is none; the job is not taken.
        """
        self.home.check()
        with self._lock:
            if self._running >= self.size:
                self._waiting.append(job)
                return
            self._running += 1
            try:
                pool = self._pool or self._enter()
                pool.put(functools.partial(self._run, pool, job))  # takes it, and does not end while this lease is in
            # No thread; or Ctrl-C, where the job may have been put: then one too many may run, which is better than one
            # too few for ever.
            except BaseException:
                self._running -= 1
                raise

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`function` of every item, run side by side, results in the order of `items`. The first exception is raised,
        and what has not begun by then does not begin."""
        futures: list[Future[R]] = [Future() for _ in items]

        def job(future: Future[R], item: T) -> Job:
            def run() -> None:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(function(item))
                # Whatever it is belongs to the caller, who gets it from the future.
                except BaseException as error:  # noqa: BLE001
                    future.set_exception(error)

            return run

        try:
            for future, item in zip(futures, items, strict=True):
                self.submit(job(future, item))
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    @property
    def others_wait(self) -> bool:
        """Whether jobs wait for a thread, so that a long job should make room."""
        pool = self._pool
        return pool is not None and pool.has_waiting

    def close(self, *, abandon: bool = False) -> None:
        """Give it back; where it was the last, the threads end. A later `submit` takes it anew. In a fork, nothing.

        Args:
            abandon: jobs that wait are never run; else all are.
        """
        if not self.home.is_this:
            return
        with self._lock:
            pool, self._pool = self._pool, None
            if abandon:
                self._waiting.clear()
            if self._drop is not None:
                self._drop.detach()
        if pool is not None:
            _leave(pool, id(self), wait=True)

    def _enter(self) -> _Pool:
        """Join the pool of the process; the lock is held."""
        with _process.lock:
            pool = _process.pool
            if pool is None or not pool.enter(id(self), self.size):
                pool = _process.pool = _Pool()
                pool.enter(id(self), self.size)
            _process.leases.add(self)
        self._pool = pool
        # Who forgets to close leaves nothing behind either.
        self._drop = weakref.finalize(self, _leave, pool, id(self), False)
        self._drop.atexit = False
        return pool

    def _run(self, pool: _Pool, job: Job) -> None:
        taken = False
        while not taken:
            job()
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                job = self._waiting.popleft()
            # Not run here and now, for jobs of other leases may have waited for longer; unless all others have left.
            taken = pool.put(functools.partial(self._run, pool, job))


def _leave(pool: _Pool, key: int, wait: bool) -> None:
    with _process.lock:
        last = pool.leave(key)
        if last and _process.pool is pool:
            _process.pool = None
    if last:
        pool.end(wait)


@atexit.register
def _close_all() -> None:
    """A thread in the middle of a run would crash the interpreter while it ends."""
    for lease in list(_process.leases):
        lease.close(abandon=True)


def _forget() -> None:
    """A fork has none of the threads; models that are loaded in it share new ones."""
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
