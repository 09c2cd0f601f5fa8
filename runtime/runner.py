"""A loaded model shared by many threads and asyncio tasks: their calls run together, within limits.

    with BatchingRunner(onnxpress.load("bundle")) as runner:
        vectors = runner.embed("a sentence")                       # in any thread
        vectors = await runner.asynchronous.embed("a sentence")    # in any event loop
        vectors = runner.within(0.2).embed("a sentence")           # in 0.2 seconds, or DeadlineExceededError

The methods are those of the model, with the same arguments, results and errors. Texts are checked and tokenized by the
caller before its call joins others, so what cannot be used fails alone. Which sequences run together is decided in
call_queue.py. Generators batch by themselves (generation/engine.py); here they get the same limits.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Self

from onnxpress.runtime.batching import TOKENS_PER_BATCH
from onnxpress.runtime.call_queue import CallQueue
from onnxpress.runtime.call_report import BatchReport
from onnxpress.runtime.encoder import SessionGraph
from onnxpress.runtime.errors import InvalidInputError, require_whole
from onnxpress.runtime.faces import LONGEST_SECONDS, Asynchronous, Blocking
from onnxpress.runtime.generation.engine import EngineState
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.limits import GeneratorCalls
from onnxpress.runtime.queue_counts import QueueCounts
from onnxpress.runtime.tasks.base import TaskModel

MOST_WAITING = 1024
"""Sequences, or requests for text, that may wait unless told otherwise."""


class BatchingRunner(Blocking):
    """A model for many callers. Safe to use from any thread; a context manager, which drains and closes."""

    asynchronous: Asynchronous
    """The same methods for event loops, to await."""

    def __init__(
        self,
        model: TaskModel | Generator,
        *,
        most_waiting: int = MOST_WAITING,
        seconds: float | None = None,
        tokens_per_batch: int | None = None,
        max_wait_seconds: float = 0.0,
        most_tokens: int | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        """
        Args:
            model: what `onnxpress.load` gave. It stays the caller's: closing the runner does not close it.
            most_waiting: sequences (texts, pairs, windows of long texts) that may wait. A call that would make them
                more fails with `QueueFullError`, unless nothing waits. Of a generator, requests (each of the `n`
                answers to a prompt is one); those of a call join one by one, so that one call alone may be too much.
            seconds: that each call may take, from its start to its result; None for no limit. See `within`.
            tokens_per_batch: of sequences that run together, padding included; None for what the model was loaded with.
                For a generator without meaning.
            max_wait_seconds: how long a sequence may wait for others to fill its batch while a worker is free, at most
                half of its call's time. 0 runs what there is: batches then form only while all workers are busy, which
                is best in nearly every case.
            most_tokens: of all texts of a call, after they were cut to what the model reads; of a generator, of prompts
                and of answers as long as they may become. None for no limit.
            on_batch: hears of each run of the graph after it, in the thread that ran it. What it raises is logged. Of a
                generator nothing is heard.

        Raises:
            InvalidInputError: an argument is not such a model, number or function.
        """
        if not isinstance(model, TaskModel | Generator):
            raise InvalidInputError(f"model is {model!r}; give what onnxpress.load gave")
        tokens = _tokens_per_batch(model) if tokens_per_batch is None else tokens_per_batch
        for name, value in (("most_waiting", most_waiting), ("tokens_per_batch", tokens)):
            require_whole(name, value)
        is_number = isinstance(max_wait_seconds, int | float) and not isinstance(max_wait_seconds, bool)
        if not is_number or not 0 <= max_wait_seconds <= 60:
            raise InvalidInputError(f"max_wait_seconds is {max_wait_seconds!r:.40}; give a number from 0 to 60")
        require_whole("most_tokens", most_tokens, or_none=True)
        if on_batch is not None and not callable(on_batch):
            raise InvalidInputError(f"on_batch is {on_batch!r}; give a function, or None")
        serving: CallQueue | GeneratorCalls
        if isinstance(model, Generator):
            serving = GeneratorCalls(model, most_waiting, most_tokens)
        else:
            serving = CallQueue(
                model.encoder,
                most_waiting=most_waiting,
                tokens=tokens,
                max_wait=max_wait_seconds,
                most_tokens=most_tokens,
                on_batch=on_batch,
            )
        super().__init__(model, serving, seconds)
        self.asynchronous = Asynchronous(model, serving, seconds)
        _SERVING.add(serving)

    @property
    def state(self) -> QueueCounts | EngineState:
        """What it holds and has done so far: cheap, for metrics. Of a generator, its engine's state."""
        serving = self._serving
        return serving.counts if isinstance(serving, CallQueue) else serving.generator.engine.state

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more calls, and wait until those that were taken are done. The model stays open.

        Args:
            drain: run what waits. False: what waits fails with `ClosedError` at once, and only what runs is waited for;
                of a generator all answers end where they are, with the reason `cancelled`.
            timeout: seconds to wait at most; None for no limit.

        Returns:
            whether all is done. A second call waits again.
        """
        if timeout is not None:
            timeout = min(timeout, LONGEST_SECONDS)
        return self._serving.close(drain=drain, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the block fails, nobody waits for what it had begun.
        self.close(drain=kind is None)


def _tokens_per_batch(model: TaskModel | Generator) -> int:
    graph = None if isinstance(model, Generator) else model.encoder.graph
    return graph.settings.tokens_per_batch if isinstance(graph, SessionGraph) else TOKENS_PER_BATCH


_SERVING: weakref.WeakSet[CallQueue | GeneratorCalls] = weakref.WeakSet()
_EXIT_SECONDS = 30.0  # for runs that have begun


@atexit.register
def _close_all() -> None:
    """A thread in the middle of a run would crash the interpreter while it ends."""
    for serving in list(_SERVING):
        serving.close(drain=False, timeout=_EXIT_SECONDS)
