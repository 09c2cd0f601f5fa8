"""The limits of a `BatchingRunner` for text generation: a deadline for each call, a bound for those that wait, an end
that waits for what was begun. What runs together is the engine's affair (engine.py)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar, Unpack, overload

from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.errors import ClosedError, DeadlineExceededError, InvalidInputError
from onnxpress.runtime.generation.checks import time_allowed
from onnxpress.runtime.generation.engine import Engine
from onnxpress.runtime.generation.generator import Generator, Messages, joined
from onnxpress.runtime.generation.options import Options
from onnxpress.runtime.generation.prompts import Prompt, is_one
from onnxpress.runtime.generation.requests import Delta, Generation, Request
from onnxpress.runtime.generation.streams import AsyncStreams
from onnxpress.runtime.tokenizer import INLINE_CHARACTERS, characters_in

P = TypeVar("P")
R = TypeVar("R")


class LimitedDesk:
    """Hands requests of one runner to an engine that others use too. Safe to use from many threads."""

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        """
        Args:
            engine: answers.
            most_waiting: requests of whomever that may wait for a row of the cache when another comes.
        """
        self._engine = engine
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._requests: weakref.WeakSet[Request] = weakref.WeakSet()
        self._closed = False

    def submit(self, request: Request) -> Request:
        """
        Raises:
            ClosedError: the runner was closed.
            QueueFullError, ForkError: as of `Engine.submit`.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("the runner was closed before the request began")
            self._engine.submit(request, most_waiting=self._most_waiting)
            self._requests.add(request)
        return request

    def cancel(self, request: Request) -> None:
        """As of `Engine.cancel`."""
        self._engine.cancel(request)

    def close(self) -> None:
        """Cancel all requests that came here, and take no more."""
        with self._lock:
            self._closed = True
            requests = list(self._requests)
        for request in requests:
            self._engine.cancel(request)


class GeneratorCalls:
    """The calls of one runner that are in a generator. Safe to use from many threads."""

    def __init__(self, generator: Generator, most_waiting: int, most_tokens: int | None = None) -> None:
        """
        Args:
            generator: answers; requests of others wait in the same queue, without these limits.
            most_waiting: requests of whomever that may wait for a row of the cache when another comes.
            most_tokens: of prompts and answers of a call; None for no limit.
        """
        self._desk = LimitedDesk(generator.engine, most_waiting)
        self.generator = generator.limited(self._desk, most_tokens)
        self._changed = threading.Condition()
        self._inside = 0
        self._closing = False

    @contextlib.contextmanager
    def call(self) -> Iterator[Generator]:
        """Be one of the calls.

        Raises:
            ForkError: this is not the process the model was loaded in.
            ClosedError: the runner was closed.
        """
        self.generator.engine.home.check()
        inside = 0
        try:
            with self._changed:
                if self._closing:
                    raise ClosedError("this runner is closed; make a new BatchingRunner over the model")
                inside = 1
                self._inside += inside
            yield self.generator
        finally:  # also of Ctrl-C when the lock has just been given back
            with self._changed:
                self._inside -= inside
                self._changed.notify_all()

    def close(self, *, drain: bool, timeout: float | None = None) -> bool:
        """Take no more calls, wait for those that are inside; without `drain` they end at once, with what there is of
        their answers and the reason `cancelled`. Returns whether all have ended. In a fork, nothing."""
        if not self.generator.engine.home.is_this:
            return True
        with self._changed:
            self._closing = True
        if not drain:
            self._desk.close()
        with self._changed:
            return self._changed.wait_for(lambda: self._inside == 0, timeout)


class GeneratorMethods:
    """The generator's methods for threads, within limits."""

    _calls: GeneratorCalls | None
    _seconds: float | None

    @overload
    def generate(self, prompts: Prompt, **options: Unpack[Options]) -> Generation: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompts: Sequence[Prompt], **options: Unpack[Options]) -> list[Generation]: ...

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Unpack[Options]) -> Generation | list[Generation]:
        """`Generator.generate`.

        Raises:
            DeadlineExceededError: the answer is not complete in the time allowed. (With `timeout_seconds` among the
                options, what there is by then is the answer.)
            ClosedError: the runner was closed.
        """
        with _inside(self._calls, "generate") as generator:
            answers: Any = generator.generate(prompts, **within(self._seconds, options))
        for answer in answers if isinstance(answers, list) else [answers]:
            check_complete(answer, self._seconds, options)
        return answers  # type: ignore[no-any-return]

    def chat(self, messages: Messages, **options: Any) -> Generation:
        """`Generator.chat`, with errors as of `generate`."""
        with _inside(self._calls, "chat") as generator:
            answer = generator.chat(messages, **within(self._seconds, options))
        return check_complete(answer, self._seconds, options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[str]:
        """`Generator.stream`; it begins with the first text that is asked for. Errors as of `generate`, the deadline's
        after the text that was made in time."""
        with (
            _inside(self._calls, "stream") as generator,
            generator.open_stream(prompt, **within(self._seconds, options)) as stream,
        ):
            for delta in stream:
                if delta.text:
                    yield delta.text
            check_complete(stream.result(), self._seconds, options)


class AsyncGeneratorMethods:
    """The generator's methods for event loops, within limits. What takes long before an answer begins (long texts, chat
    templates over them, grammars) is done in another thread."""

    _calls: GeneratorCalls | None
    _seconds: float | None
    _report: CallReport | None

    @overload
    async def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, **options: Unpack[Options]
    ) -> Generation: ...

    @overload
    async def generate(self, prompts: Sequence[Prompt], **options: Unpack[Options]) -> list[Generation]: ...

    async def generate(
        self, prompts: Prompt | Sequence[Prompt], **options: Unpack[Options]
    ) -> Generation | list[Generation]:
        """`Generator.generate` without beam search, with errors as of `GeneratorMethods.generate`. Cancelling the task
        cancels the requests."""
        one = is_one(prompts)
        listed: Any = [prompts] if one else prompts
        async with self.open_streams(listed, deltas=False, **options) as streams:
            answers = joined(await streams.results(), len(listed))
        return answers[0] if one else answers

    async def chat(self, messages: Messages, **options: Any) -> Generation:
        """`Generator.chat`, with errors as of `generate`."""
        async with self._open_chat(messages, options, deltas=False) as streams:
            return joined(await streams.results(), 1)[0]

    async def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[str]:
        """Text while it is made; `n` must be 1. Leaving the iterator cancels the rest."""
        async with self.open_streams([prompt], **options) as streams:
            async for text in _texts(streams):
                yield text

    async def stream_chat(self, messages: Messages, **options: Any) -> AsyncIterator[str]:
        """The same for an answer to a conversation. Arguments as of `Generator.chat`."""
        async with self._open_chat(messages, options) as streams:
            async for text in _texts(streams):
                yield text

    async def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """`Generator.encode`."""
        with _inside(self._calls, "generate") as generator:
            return await self._beside(_size(prompts), generator.encode, prompts)

    async def chat_prompt(self, messages: Messages, **chat: Any) -> list[int]:
        """`Generator.chat_prompt`."""
        with _inside(self._calls, "chat") as generator:
            render = functools.partial(generator.chat_prompt, **chat)
            return await self._beside(characters_in((messages, chat)), render, messages)

    @contextlib.asynccontextmanager
    async def open_streams(
        self,
        prompts: Sequence[Prompt],
        *,
        deltas: bool = True,
        since: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncIterator[AsyncStreams]:
        """The answers to prompts while they are made (`n` to the first, `n` to the second), with what each token adds.
        Leaving the block cancels what is not made yet.

        Args:
            prompts: texts or token ids.
            deltas: hear of each token; else of the ends only.
            since: when the time allowed began, in seconds of `time.monotonic()`; None for now.
            options: see `Options`; no beam search.

        Raises:
            InvalidInputError, CacheMemoryError, QueueFullError, ForkError: as of `Generator.generate`.
            ClosedError: the runner was closed.
            DeadlineExceededError: where they are read, when the time allowed has passed.
        """
        since = time.monotonic() if since is None else since
        with _inside(self._calls, "generate") as generator:
            encoded = await self._beside(_size(prompts), generator.encode, prompts)
            # Reading a grammar takes long, the tokens for the first one up to a second.
            size = _size(encoded) if options.get("grammar") is None else float("inf")
            left = None if self._seconds is None else max(0.0, since + self._seconds - time.monotonic())
            prepare = functools.partial(generator.preparing.answers, options=within(left, options))
            prepared = await self._beside(size, prepare, encoded)
            check = functools.partial(check_complete, seconds=self._seconds, options=options)
            async with AsyncStreams(generator.desk, prepared, deltas=deltas, check=check) as streams:
                try:
                    yield streams
                finally:
                    self._add(streams.requests)

    @contextlib.asynccontextmanager
    async def _open_chat(
        self, messages: Messages, options: dict[str, Any], *, deltas: bool = True
    ) -> AsyncIterator[AsyncStreams]:
        since = time.monotonic()
        chat = {name: options.pop(name) for name in _OF_CHAT if name in options}
        prompt = await self.chat_prompt(messages, **chat)
        async with self.open_streams([prompt], deltas=deltas, since=since, **options) as streams:
            yield streams

    async def _beside(self, size: float, work: Callable[[P], R], subject: P) -> R:
        """Do work, in another thread where it takes long.

        Args:
            size: of what it is about, in characters or as many tokens.
            work: to do.
            subject: what it gets.
        """
        began = time.monotonic()
        try:
            return work(subject) if size <= INLINE_CHARACTERS else await asyncio.to_thread(work, subject)
        finally:
            if self._report is not None:
                self._report.tokenize_seconds += time.monotonic() - began

    def _add(self, requests: Sequence[Request]) -> None:
        """What requests took, to the report: they run together, so their times are not added to each other."""
        report, now = self._report, time.monotonic()
        if report is None or not requests:
            return
        asked = min(request.asked for request in requests)
        admitted = min((request.admitted for request in requests if request.admitted is not None), default=now)
        report.sequences += len(requests)
        report.tokens += sum(len(request.prompt) for request in requests)
        report.wait_seconds += admitted - asked
        report.run_seconds += max([admitted, *(request.token_times[-1] for request in requests if request.token_times)])
        report.run_seconds -= admitted


_OF_CHAT = ("tools", "continue_final_message", "template_variables")


def _size(prompts: Sequence[Prompt]) -> int:
    """Of prompts, in characters or tokens. What is no prompt counts nothing, nor what is no list: it is refused at
    once."""
    listed = prompts if isinstance(prompts, Sequence) else ()
    return sum(len(prompt) for prompt in listed if isinstance(prompt, Sequence))


async def _texts(streams: AsyncStreams) -> AsyncIterator[str]:
    if len(streams.requests) != 1:
        raise InvalidInputError(f"n is {len(streams.requests)}; a stream is one answer: leave n out, or use generate()")
    while items := await streams.ready():
        for _, item in items:
            if isinstance(item, Delta) and item.text:
                yield item.text


def within(seconds: float | None, options: Any) -> Any:
    """The options with the sooner of the runner's time and the caller's own; those of a beam search, which ends by
    itself, as they are.

    Raises:
        InvalidInputError: the caller's own is no number of seconds.
    """
    if options.get("num_beams") not in (None, 1):
        return options
    times = [time for time in (seconds, time_allowed(options.get("timeout_seconds"))) if time is not None]
    return {**options, "timeout_seconds": min(times)} if times else options


def check_complete(answer: Generation, seconds: float | None, options: Any) -> Generation:
    """The answer, unless it was the runner's time that ended it.

    Raises:
        DeadlineExceededError: it was.
    """
    own = options.get("timeout_seconds")
    if answer.finish_reason == "timeout" and seconds is not None and (own is None or own > seconds):
        raise DeadlineExceededError(
            f"no complete answer within {seconds:g} seconds ({len(answer.token_ids)} tokens were made); allow more, or "
            "ask for fewer tokens"
        )
    return answer


def _inside(calls: GeneratorCalls | None, method: str) -> contextlib.AbstractContextManager[Generator]:
    if calls is None:
        raise AttributeError(f"{method}() needs a bundle for text-generation; this one has another task")
    return calls.call()
