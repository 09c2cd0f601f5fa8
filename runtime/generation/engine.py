"""Serves generation requests from any thread or event loop through one thread, which owns the session and the cache.

The thread starts with the first request and ends when there is none for a while. What requests share, and in which
order they are served, is in scheduler.py.
"""

from __future__ import annotations

import atexit
import dataclasses
import threading
import weakref
from collections.abc import Sequence

from onnxpress.runtime.errors import InvalidInputError, QueueFullError
from onnxpress.runtime.generation.decoder import Decoder
from onnxpress.runtime.generation.requests import Request
from onnxpress.runtime.generation.scheduler import Counts, Scheduler
from onnxpress.runtime.processes import HomeProcess

_IDLE_SECONDS = 5.0  # that the thread waits for another request
_FILL_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class EngineState:
    """What an engine holds at a moment, and what it has done so far."""

    waiting: int
    """Requests that are not admitted yet."""
    running: int
    """Requests whose prompt is being filled or whose answer is being made."""
    taken_rows: int
    """Rows that requests have; those that run and whose prompt's turn has not come have none."""
    kept_rows: int
    """Rows kept for prompts that begin with what they hold."""
    rows: int
    """Rows of the cache."""
    capacity: int
    """Tokens a row may hold."""
    cache_bytes: int
    counts: Counts


class Engine:
    """A decoder that many callers share. Safe to call from many threads."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        fill_tokens: int = _FILL_TOKENS,
        reuse_prefixes: bool = True,
    ) -> None:
        """
        Args:
            decoder: runs the graph; the engine alone uses it from now on.
            fill_tokens: tokens of prompts that may run between two steps of the requests that decode. More make new
                requests start sooner and the others wait longer.
            reuse_prefixes: take over what the cache holds of a prompt's beginning, from earlier or running requests.
        """
        self.decoder = decoder
        self._cache = decoder.cache
        self._scheduler = Scheduler(decoder, fill_tokens, reuse_prefixes)
        self.home = HomeProcess()
        self._changed = threading.Condition()
        self._new: list[Request] = []
        self._cancelled: list[Request] = []
        self._closing = False
        self._thread: threading.Thread | None = None
        _ENGINES.add(self)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self._cache.context

    @property
    def state(self) -> EngineState:
        """A look at the engine while it works; figures may be a step apart."""
        scheduler, cache = self._scheduler, self._cache
        return EngineState(
            waiting=scheduler.waiting + len(self._new),
            running=scheduler.admitted,
            taken_rows=scheduler.taken,
            kept_rows=scheduler.kept,
            rows=cache.rows,
            capacity=cache.capacity,
            cache_bytes=cache.size_bytes,
            counts=dataclasses.replace(scheduler.counts),
        )

    def room_for(self, prompt: Sequence[int], wanted: int | None) -> int:
        """How many tokens an answer to `prompt` may have, at most `wanted`.

        Raises:
            InvalidInputError: the prompt is empty, has ids that are no tokens, or fills the context.
            CacheMemoryError: the cache may not become as large as that needs.
        """
        if not prompt:
            raise InvalidInputError("the prompt has no tokens; give a text, or at least one token")
        if min(prompt) < 0 or max(prompt) >= self.decoder.vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < self.decoder.vocabulary)
            raise InvalidInputError(
                f"the prompt has the token {wrong}; the model knows 0 to {self.decoder.vocabulary - 1}"
            )
        if wanted is not None and wanted < 1:
            raise InvalidInputError(f"max_new_tokens is {wanted}; it must be at least 1")
        room = self.context - len(prompt)
        if room < 1:
            raise InvalidInputError(
                f"the prompt has {len(prompt)} tokens; the model's context is {self.context}, which must have room for "
                "the answer too; shorten the prompt"
            )
        most_new = room if wanted is None else min(room, wanted)
        self._cache.require(len(prompt) + most_new)
        return most_new

    def submit(self, request: Request, *, most_waiting: int | None = None) -> Request:
        """Hand a request over; it waits for its turn. Returns it.

        Args:
            request: of any caller.
            most_waiting: requests that may wait for a row when this one comes; None for any number.

        Raises:
            QueueFullError: too many are waiting.
            ForkError: this is not the process the model was loaded in.
            RuntimeError: the system gives no thread.
        """
        self.home.check()
        with self._changed:
            waiting = self._scheduler.waiting + len(self._new)
            if most_waiting is not None and waiting >= most_waiting:
                raise QueueFullError(
                    f"{waiting} requests are waiting, which is the limit; try again later, or ask for less at once"
                )
            self._new.append(request)
            try:
                self._wake()
            except RuntimeError:
                self._new.remove(request)
                raise
        return request

    def cancel(self, request: Request) -> None:
        """End a request after the step that is running; its row is free then. Nothing happens if it is done, nor in a
        fork, where there is no such thread and the lock may be held for ever."""
        if not self.home.is_this:
            return
        with self._changed:
            if not request.done:
                self._cancelled.append(request)
                self._wake()

    def close(self) -> None:
        """Cancel all requests, end the thread and give the cache's memory back. A later request starts anew."""
        if not self.home.is_this:
            return
        with self._changed:
            thread = self._thread
            if thread is None:
                self._scheduler.clear()
                return
            self._closing = True
            self._changed.notify()
        if thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        """Make the thread look; the lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="onnxpress-generation", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the system has no more of them now; a later request asks again
                self._thread = None
                raise
        else:
            self._changed.notify()

    def _serve(self) -> None:
        while self._take():
            try:
                if self._scheduler.busy:
                    self._scheduler.advance()
            # An error of ours, or a panic of a library, must not leave callers waiting for ever: all get it, and the
            # next requests are served.
            except BaseException as error:  # noqa: BLE001
                failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
                for request in self._scheduler.requests():
                    request.fail(failure)
                self._scheduler.clear()

    def _take(self) -> bool:
        """Wait for work and take what is new. Returns False when the thread is to end."""
        if self._scheduler.busy and not (self._new or self._cancelled or self._closing):
            return True  # between two steps, without the lock: what comes in this moment is seen after the next
        with self._changed:
            if not (self._new or self._cancelled or self._closing or self._scheduler.busy):
                self._changed.wait(_IDLE_SECONDS)
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
            closing = self._closing
            if closing:
                cancelled = [*self._scheduler.requests(), *new]
            elif not (new or cancelled or self._scheduler.busy):
                self._thread = None
                return False
            for request in new:
                self._scheduler.add(request)
        for request in cancelled:
            if not request.done:
                request.finish("cancelled")
                self._scheduler.drop(request)
        if closing:
            self._end()
        return not closing

    def _end(self) -> None:
        """Close. Requests that came meanwhile get a thread of their own: who closes waits for this one."""
        with self._changed:
            self._scheduler.clear()
            self._closing = False
            self._thread = None
            if self._new:
                self._wake()


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread in the middle of a run would crash the interpreter while it ends."""
    for engine in list(_ENGINES):
        engine.close()
