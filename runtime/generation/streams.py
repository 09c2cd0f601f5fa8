"""Answers while they are made: an iterator for threads, and the same for event loops. Leaving one cancels its
requests, and so does forgetting it."""

from __future__ import annotations

import asyncio
import functools
import queue
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from onnxpress.runtime.generation.preparing import Prepared
from onnxpress.runtime.generation.requests import Delta, Generation, Request


class Desk(Protocol):
    """Where requests are handed over: an engine, or what sets limits before it."""

    def submit(self, request: Request) -> Request:
        """As of `Engine.submit`."""

    def cancel(self, request: Request) -> None:
        """As of `Engine.cancel`."""


Check = Callable[[Generation], object]
"""Raises where an answer should be an error instead."""


class Stream:
    """An iterator over what each token adds; `result` is the whole answer."""

    def __init__(self, desk: Desk, prepared: Prepared) -> None:
        self._desk = desk
        # The request, which the engine holds, knows the queue and not the stream.
        self._deltas = deltas = queue.SimpleQueue[Delta | None]()
        self.request = prepared.make(deltas.put, lambda _: deltas.put(None))
        desk.submit(self.request)
        weakref.finalize(self, desk.cancel, self.request).atexit = False

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
        self._desk.cancel(self.request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncStreams:
    """Several answers at once, for an event loop; made inside one. What the engine has made while the loop was busy is
    there together."""

    def __init__(
        self, desk: Desk, prepared: Sequence[Prepared], *, deltas: bool = True, check: Check | None = None
    ) -> None:
        """
        Args:
            desk: takes all requests, now.
            prepared: of each answer.
            deltas: hear of each token; else of the ends only, which costs the loop less.
            check: looks at each finished answer.

        Raises:
            QueueFullError: too many are waiting; none of these stays.
            ForkError: this is not the process the model was loaded in.
        """
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._check = check
        self._inbox: deque[tuple[int, Delta | None]] = deque()  # None for an end
        self._arrived = asyncio.Event()
        self._woken = False  # whether the event is set or about to be, so that nobody need set it
        self._left = len(prepared)  # requests whose end is not given out
        self._failure: Exception | None = None
        self.requests: list[Request] = []
        try:
            for index, each in enumerate(prepared):
                hear = functools.partial(self._put, index)
                request = each.make(hear if deltas else None, lambda _, hear=hear: hear(None))  # type: ignore[misc]
                self.requests.append(desk.submit(request))
        except BaseException:
            self.cancel()
            raise

    async def ready(self) -> list[tuple[int, Delta | Generation]]:
        """What has come since the last time, at least one thing: what a token added, or the whole answer at its end,
        each with the index of its request. Empty where all have ended.

        Raises:
            Exception: what made a request fail, or `check` raised, after all that came before; the others are
                cancelled.
        """
        while not self._inbox and self._left and self._failure is None:
            self._arrived.clear()
            self._woken = False
            if not self._inbox:  # from here on whoever puts something in wakes this
                await self._arrived.wait()
        items: list[tuple[int, Delta | Generation]] = []
        while self._inbox and self._failure is None:
            index, delta = self._inbox.popleft()
            if delta is not None:
                items.append((index, delta))
            elif (answer := self._ended(index)) is not None:
                items.append((index, answer))
        if self._failure is not None and not items:
            raise self._failure
        return items

    async def results(self) -> list[Generation]:
        """Wait for all answers. What was not read by then is passed over. Errors as of `ready`."""
        while await self.ready():
            pass
        return [request.result(0) for request in self.requests]

    def cancel(self) -> None:
        """Cancel what is not made yet."""
        for request in self.requests:
            self._desk.cancel(request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _ended(self, index: int) -> Generation | None:
        self._left -= 1
        try:
            answer = self.requests[index].result(0)
            if self._check is not None:
                self._check(answer)
        # Whatever it is, it is raised for whoever waits, after what came before it.
        except Exception as error:  # noqa: BLE001
            self._failure = error
            self.cancel()
            return None
        return answer

    def _put(self, index: int, delta: Delta | None) -> None:
        """In the engine's thread."""
        self._inbox.append((index, delta))
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._arrived.set)
            except RuntimeError:  # the loop has ended, so nobody listens
                self.cancel()


class AsyncStream:
    """`Stream` for an event loop; made inside one."""

    def __init__(self, desk: Desk, prepared: Prepared, check: Check | None = None) -> None:
        self._streams = AsyncStreams(desk, [prepared], check=check)
        weakref.finalize(self, self._streams.cancel).atexit = False
        self._deltas: deque[Delta] = deque()

    @property
    def request(self) -> Request:
        """What the engine has got."""
        return self._streams.requests[0]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            try:
                items = await self._streams.ready()
            except asyncio.CancelledError:
                self.cancel()
                raise
            if not items:
                raise StopAsyncIteration
            self._deltas.extend(item for _, item in items if isinstance(item, Delta))
        return self._deltas.popleft()

    async def result(self) -> Generation:
        """Wait for the whole answer; what was not iterated over by then is passed over."""
        async for _ in self:
            pass
        return self.request.result(0)

    def cancel(self) -> None:
        """Cancel what is not made yet."""
        self._streams.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
