"""A guard that is a Python function, sync or async."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Self

from onnxpress.runtime.errors import InvalidInputError, first_line
from onnxpress.runtime.guards.guard import Finding
from onnxpress.runtime.guards.normalising import forms
from onnxpress.runtime.guards.settings import GuardSettings

Look = Callable[[str], str | None] | Callable[[str], Awaitable[str | None]]

_THREADS = 16
_MOST_WAITING = 256
_MOST_AT_ONCE = 16
_QUOTED = 12
"""Characters of a text in a row that its reason must not have."""
_NO_REASON = "stopped"


class CallingGuard:
    """A function of a text, called with each form of it."""

    passed_on: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, settings: GuardSettings, function: Look) -> None:
        """
        Args:
            settings: with a callable, which is not looked at.
            function: returns None, or why the text is stopped. A sync one runs in threads, many of which may be in it
                at once; an async one in the event loop of whoever asks.
        """
        self.settings = settings
        self._function = function
        self._is_async = _is_async(function)
        self._threads = _Threads()

    @classmethod
    def load(cls, settings: GuardSettings) -> Self:
        """
        Raises:
            InvalidInputError: there is no such function; the text begins with the guard's name.
        """
        assert settings.callable is not None
        try:
            return cls(settings, _find(settings.callable))
        except InvalidInputError as error:
            raise InvalidInputError(f"the guard {settings.name!r}: {error}") from error

    async def look(self, texts: Sequence[str]) -> Finding | None:
        """As `Guard` has it."""
        if not self._is_async:
            finding: Finding | None = await self._threads.run(lambda: self._look_here(texts))
            return finding
        items = [(index, form) for index, text in enumerate(texts) for form in forms(text)]
        places = asyncio.Semaphore(_MOST_AT_ONCE)

        async def ask(form: str) -> Any:
            async with places:
                answer: Any = self._function(form)
                return await answer

        answers = await asyncio.gather(*(ask(form) for _, form in items))
        for (index, form), answer in zip(items, answers, strict=True):
            if (finding := _finding(answer, form, texts[index], index)) is not None:
                return finding
        return None

    def close(self, timeout: float | None = None) -> None:
        """End the threads that are in no call."""
        self._threads.end()

    def _look_here(self, texts: Sequence[str]) -> Finding | None:
        for index, text in enumerate(texts):
            for form in forms(text):
                if (finding := _finding(self._function(form), form, text, index)) is not None:
                    return finding
        return None


def _finding(answer: Any, form: str, text: str, index: int) -> Finding | None:
    """
    Raises:
        TypeError: the function returned something else than None or a reason.
    """
    if answer is None:
        return None
    if not isinstance(answer, str):
        raise TypeError(f"it returned {type(answer).__name__}; a guard returns None, or a reason as a str")
    reason = " ".join(answer.split())[:200]
    quotes = _quotes(reason, form) or _quotes(reason, text)
    return Finding(_NO_REASON if quotes or not reason else reason, None, index)


def _quotes(reason: str, text: str) -> bool:
    """Whether a reason repeats the text, which must not leave by this way."""
    reason, text = reason.casefold(), " ".join(text.casefold().split())
    if 0 < len(text) <= _QUOTED:
        return text in reason
    return any(reason[start : start + _QUOTED] in text for start in range(len(reason) - _QUOTED + 1))


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _find(path: str) -> Look:
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise InvalidInputError(f"its callable is {path!r}; give package.module:name")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"there is no module {error.name!r} for its callable {path}") from error
    except AttributeError as error:
        raise InvalidInputError(f"the module of its callable has no {name!r}: {path}") from error
    # Whatever importing somebody's module raises is to be told in a sentence.
    except Exception as error:
        raise InvalidInputError(f"importing its callable {path} failed: {first_line(error)}") from error
    if not callable(found):
        raise InvalidInputError(f"its callable {path} is of type {type(found).__name__}; give a function of a text")
    return found  # type: ignore[no-any-return]


class _Threads:
    """Threads for functions that may never return: the interpreter ends without them, and there are only so many."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(_MOST_WAITING)
        self._lock = threading.Lock()
        self._count = 0
        self._unfinished = 0

    async def run(self, job: Callable[[], Any]) -> Any:
        """What the job returns, or raises.

        Raises:
            RuntimeError: too many wait.
        """
        future: Future[Any] = Future()
        with self._lock:
            try:
                self._jobs.put_nowait((future, job))
            except queue.Full:
                raise RuntimeError(f"{_MOST_WAITING} calls of it are waiting") from None
            self._unfinished += 1
            starts = self._unfinished > self._count and self._count < _THREADS
            self._count += starts
        if starts:
            threading.Thread(target=self._serve, name="onnxpress-guard", daemon=True).start()
        return await asyncio.wrap_future(future)

    def end(self) -> None:
        """Let threads that are in no job end."""
        with self._lock:
            count, self._count = self._count, 0
        for _ in range(count):
            try:
                self._jobs.put_nowait(None)
            except queue.Full:  # all of them are in a job that does not end
                return

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(job())
            # It belongs to whoever waits.
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)
            with self._lock:
                self._unfinished -= 1
            del item, future, job  # what they hold must not live until the next one comes
