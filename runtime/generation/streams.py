"""Answers while they are made: an iterator for threads, and one for event loops. Leaving one cancels its request."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from types import TracebackType
from typing import Self

from onnxpress.runtime.generation.engine import Engine
from onnxpress.runtime.generation.requests import Delta, Generation, Request

MakeRequest = Callable[[Callable[[Delta], None] | None, Callable[[Request], None] | None], Request]
"""Makes a request that tells these two of each token and of the end."""


class Stream:
    """An iterator over what each token adds; `result` is the whole answer."""

    def __init__(self, engine: Engine, make_request: MakeRequest) -> None:
        self._engine = engine
        self._deltas: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        self.request = make_request(self._deltas.put, lambda _: self._deltas.put(None))
        engine.submit(self.request)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        delta = self._deltas.get()
        if delta is None:
            self._deltas.put(None)  # for whoever asks again
            self.request.result(0)  # raises what made it fail
            raise StopIteration
        return delta

    def result(self) -> Generation:
        """Wait for the whole answer, with the reason of its end."""
        return self.request.result()

    def close(self) -> None:
        """Cancel what is not made yet."""
        self._engine.cancel(self.request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream:
    """The same for an event loop; made inside one."""

    def __init__(self, engine: Engine, make_request: MakeRequest) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self.request = make_request(self._put, lambda _: self._put(None))
        engine.submit(self.request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        try:
            delta = await self._deltas.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if delta is None:
            self._deltas.put_nowait(None)
            self.request.result(0)
            raise StopAsyncIteration
        return delta

    async def result(self) -> Generation:
        """Wait for the whole answer; what was not iterated over by then is passed over."""
        async for _ in self:
            pass
        return self.request.result(0)

    def cancel(self) -> None:
        """Cancel what is not made yet."""
        self._engine.cancel(self.request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _put(self, delta: Delta | None) -> None:
        """In the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._deltas.put_nowait, delta)
        except RuntimeError:  # the loop has ended, so nobody listens
            self._engine.cancel(self.request)
