"""The limits of a `BatchingRunner` for text generation: a deadline for each call, a bound for those that wait, an end
that waits for what was begun. What runs together is the engine's affair (engine.py)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Unpack, overload

from onnxpress.runtime.errors import ClosedError, DeadlineExceededError
from onnxpress.runtime.generation.generator import Generator, Messages
from onnxpress.runtime.generation.options import Options
from onnxpress.runtime.generation.prompts import Prompt
from onnxpress.runtime.generation.requests import Generation


class GeneratorCalls:
    """The calls of one runner that are in a generator. Safe to use from many threads."""

    def __init__(self, generator: Generator, most_waiting: int) -> None:
        """
        Args:
            generator: answers; requests of others wait in the same queue.
            most_waiting: requests that may wait for a row of the cache, from now on.
        """
        self.generator = generator
        generator.engine.most_waiting = most_waiting
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
        with self._changed:
            if self._closing:
                raise ClosedError("this runner is closed; make a new BatchingRunner over the model")
            self._inside += 1
        try:
            yield self.generator
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self, *, drain: bool, timeout: float | None = None) -> bool:
        """Take no more calls, wait for those that are inside; without `drain` they end at once, with what there is of
        their answers and the reason `cancelled`. Returns whether all have ended. In a fork, nothing."""
        if not self.generator.engine.home.is_this:
            return True
        with self._changed:
            self._closing = True
        if not drain:
            self.generator.engine.close()
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
    """The generator's methods for event loops, within limits."""

    _calls: GeneratorCalls | None
    _seconds: float | None

    async def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation:
        """`Generator.generate_async`, with errors as of `GeneratorMethods.generate`."""
        with _inside(self._calls, "generate") as generator:
            answer = await generator.generate_async(prompt, **within(self._seconds, options))
        return check_complete(answer, self._seconds, options)

    async def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[str]:
        """Text while it is made. Leaving the iterator cancels the rest."""
        with _inside(self._calls, "stream") as generator:
            async with generator.open_async_stream(prompt, **within(self._seconds, options)) as stream:
                async for delta in stream:
                    if delta.text:
                        yield delta.text
                check_complete(await stream.result(), self._seconds, options)


def within(seconds: float | None, options: Any) -> Any:
    """The options with the sooner of the runner's time and the caller's own."""
    own = options.get("timeout_seconds")
    times = [time for time in (seconds, own) if time is not None]
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
