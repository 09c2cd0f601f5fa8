"""The two faces of a `BatchingRunner`: methods that block a thread, and methods to await in an event loop.

Each method is the model's own, looked up when it is called: a model without it says which task has it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from onnxpress.runtime.call_queue import CallQueue
from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.limits import AsyncGeneratorMethods, GeneratorCalls, GeneratorMethods
from onnxpress.runtime.queued_calls import Call, late_error
from onnxpress.runtime.tasks.answering import Reader
from onnxpress.runtime.tasks.base import TaskModel, method_of_another_task
from onnxpress.runtime.tasks.classification import Classifier
from onnxpress.runtime.tasks.embedding import Embedder
from onnxpress.runtime.tasks.filling import Filler
from onnxpress.runtime.tasks.ranking import Reranker
from onnxpress.runtime.tasks.steps import Steps, Work, begin, finish
from onnxpress.runtime.tasks.tagging import Tagger
from onnxpress.runtime.tokenizer import INLINE_CHARACTERS, characters_in

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_SECONDS = 1e9
"""What longer times are taken for, infinity too: 31 years. Python's locks wait for up to `threading.TIMEOUT_MAX`."""


def check_seconds(seconds: float | None) -> float | None:
    """
    Raises:
        InvalidInputError: it is not a number of seconds above 0, or None.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidInputError(f"the time allowed is {seconds!r}; give a number of seconds above 0, or None")
    return float(min(seconds, LONGEST_SECONDS))


class _Face:
    """A model, the queue to it, and the time that a call may take."""

    def __init__(
        self,
        model: TaskModel | Generator,
        serving: CallQueue | GeneratorCalls,
        seconds: float | None,
        report: CallReport | None = None,
    ) -> None:
        self._model = model
        self._serving = serving
        self._calls = serving if isinstance(serving, GeneratorCalls) else None
        self._seconds = check_seconds(seconds)
        self._report = report

    @property
    def _queue(self) -> CallQueue:
        assert isinstance(self._serving, CallQueue)  # a generator has none of the methods that need it
        return self._serving

    def _deadline(self) -> float | None:
        return None if self._seconds is None else time.monotonic() + self._seconds

    def _begun(self, work: Work | None, started: float) -> None:
        """Texts have become work, or the result already."""
        tokens = 0 if work is None else sum(map(len, work.encodings))
        if self._report is not None:
            self._report.started = self._report.started or started
            self._report.sequences += 0 if work is None else len(work.encodings)
            self._report.tokens += tokens
            self._report.tokenize_seconds += time.monotonic() - started
        self._queue.check_tokens(tokens)

    def _ended(self, call: Call) -> None:
        if self._report is not None and call.ended:
            self._report.wait_seconds += call.begun - call.since
            self._report.run_seconds += call.ended - call.begun

    def _steps(self, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Steps[Any]:
        """The method of the model in two halves.

        Raises:
            AttributeError: the model's task has no such method.
        """
        if isinstance(self._model, Generator):
            raise method_of_another_task(name, self._model.settings)
        method = getattr(self._model, name)
        self._queue.check()
        self._queue.check_room(self._seconds)
        steps: Steps[Any] = method.steps(self._model, *arguments, **options)
        return steps


def _blocking(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Blocking, P], R]:
    @functools.wraps(method)
    def call(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self._call(method.__name__, args, kwargs)
        return result

    return call


def _asynchronous(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Asynchronous, P], Awaitable[R]]:
    @functools.wraps(method)
    def call(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return self._call(method.__name__, args, kwargs)

    return call


class Blocking(_Face, GeneratorMethods):
    """For threads: each method returns when its result is there."""

    embed = _blocking(Embedder.embed)
    embed_tokens = _blocking(Embedder.embed_tokens)
    classify = _blocking(Classifier.classify)
    highest_scores = _blocking(Classifier.highest_scores)
    zero_shot = _blocking(Classifier.zero_shot)
    rank = _blocking(Reranker.rank)
    score = _blocking(Reranker.score)
    tag = _blocking(Tagger.tag)
    label_words = _blocking(Tagger.label_words)
    answer = _blocking(Reader.answer)
    fill = _blocking(Filler.fill)

    def within(self, seconds: float | None, report: CallReport | None = None) -> Blocking:
        """The same methods, each with so much time from its call to its result.

        Args:
            seconds: above 0; None for no limit.
            report: what calls took is added to it; of generators only those of event loops.
        """
        return Blocking(self._model, self._serving, seconds, report)

    def _call(self, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        started, deadline = time.monotonic(), self._deadline()
        steps = self._steps(name, arguments, options)
        work, result = begin(steps)
        self._begun(work, started)
        if work is None or not work.encodings:
            return result if work is None else finish(steps, [])
        call = _ThreadCall(work, deadline)
        if not self._queue.run(call, here=True):
            self._wait(call)
        self._ended(call)
        if call.error is not None:
            raise call.error
        return finish(steps, call.rows)

    def _wait(self, call: _ThreadCall) -> None:
        seconds = -1.0 if call.deadline is None else max(0.0, call.deadline - time.monotonic())
        try:
            in_time = call.ready.acquire(timeout=seconds)
        # Ctrl-C, say.
        except BaseException:
            self._queue.give_up(call)
            raise
        # Where it was done in this very moment, the result is there and is given.
        if not in_time and self._queue.expire(call):
            raise late_error()


class Asynchronous(_Face, AsyncGeneratorMethods):
    """For event loops: each method gives an awaitable. Cancelling the task takes the call off the queue. The loop
    computes nothing that takes long: long texts are tokenized in another thread, results are made by the workers."""

    embed = _asynchronous(Embedder.embed)
    embed_tokens = _asynchronous(Embedder.embed_tokens)
    classify = _asynchronous(Classifier.classify)
    highest_scores = _asynchronous(Classifier.highest_scores)
    zero_shot = _asynchronous(Classifier.zero_shot)
    rank = _asynchronous(Reranker.rank)
    score = _asynchronous(Reranker.score)
    tag = _asynchronous(Tagger.tag)
    label_words = _asynchronous(Tagger.label_words)
    answer = _asynchronous(Reader.answer)
    fill = _asynchronous(Filler.fill)

    def within(self, seconds: float | None, report: CallReport | None = None) -> Asynchronous:
        """The same methods, each with so much time from its call to its result; see `Blocking.within`."""
        return Asynchronous(self._model, self._serving, seconds, report)

    async def _call(self, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        loop = asyncio.get_running_loop()
        started, deadline = time.monotonic(), self._deadline()
        steps = self._steps(name, arguments, options)
        if characters_in((arguments, options)) <= INLINE_CHARACTERS:
            work, result = begin(steps)
        else:
            work, result = await asyncio.to_thread(begin, steps)
        self._begun(work, started)
        if work is None or not work.encodings:
            return result if work is None else finish(steps, [])
        call = _TaskCall(work, deadline, steps, loop)
        timer = None if deadline is None else loop.call_later(deadline - time.monotonic(), self._expire, call)
        try:
            self._queue.run(call, here=False)
            return await call.future
        except asyncio.CancelledError:
            self._queue.give_up(call)
            raise
        finally:
            self._ended(call)
            if timer is not None:
                timer.cancel()

    def _expire(self, call: _TaskCall) -> None:
        if self._queue.expire(call) and not call.future.done():
            call.future.set_exception(late_error())


class _ThreadCall(Call):
    """A call that a thread waits for."""

    __slots__ = ("ready",)

    def __init__(self, work: Work, deadline: float | None) -> None:
        super().__init__(work, deadline, _release)
        self.ready = threading.Lock()  # the cheapest thing to wait for
        self.ready.acquire()


def _release(calls: Sequence[Call]) -> None:
    for call in calls:
        assert isinstance(call, _ThreadCall)
        call.ready.release()


class _TaskCall(Call):
    """A call that a task awaits; its result is made by the worker."""

    __slots__ = ("future", "steps")

    def __init__(self, work: Work, deadline: float | None, steps: Steps[Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(work, deadline, _LoopWaker(loop))
        self.steps = steps
        self.future: asyncio.Future[Any] = loop.create_future()


@dataclasses.dataclass(frozen=True)
class _LoopWaker:
    """Wakes the tasks of an event loop, all that are ready at once."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, calls: Sequence[Call]) -> None:
        outcomes = []
        for call in calls:
            assert isinstance(call, _TaskCall)
            outcome = None
            error = call.error
            if error is None:
                try:
                    outcome = finish(call.steps, call.rows)
                # Whatever it is, it belongs to the caller.
                except Exception as own:  # noqa: BLE001
                    error = own
            outcomes.append((call.future, outcome, error))
        try:
            self.loop.call_soon_threadsafe(_settle, outcomes)
        except RuntimeError:  # the loop has ended, so nobody waits
            return


def _settle(outcomes: Sequence[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    """In the event loop's thread."""
    for future, outcome, error in outcomes:
        if future.done():  # cancelled
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(outcome)
