"""An event loop in a thread of its own, for whoever has none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from onnxpress.runtime.errors import ClosedError
from onnxpress.runtime.processes import HomeProcess

R = TypeVar("R")


class LoopThread:
    """Starts when it is first needed. Safe to use from many threads."""

    def __init__(self) -> None:
        self._home = HomeProcess()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """What it returns, or raises. Not from a coroutine, whose loop would stand still meanwhile.

        Raises:
            ForkError: this is a fork.
            ClosedError: it was closed.
            RuntimeError: the system gives no thread.
        """
        try:
            loop = self._open()
        except BaseException:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        # Ctrl-C, say: nobody waits any more.
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread."""
        if not self._home.is_this:
            return
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _open(self) -> asyncio.AbstractEventLoop:
        self._home.check()
        with self._lock:
            if self._closed:
                raise ClosedError("these guards are closed; load them again")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="onnxpress-guards", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
