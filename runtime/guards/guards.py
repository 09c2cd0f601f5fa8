"""All guards of a process: which look at a text, side by side, and what becomes of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from onnxpress.runtime.errors import BlockedError, GuardError, InvalidInputError, OnnxpressError
from onnxpress.runtime.guards.calling import CallingGuard
from onnxpress.runtime.guards.classifying import ClassifyingGuard
from onnxpress.runtime.guards.guard import Finding, Guard
from onnxpress.runtime.guards.loop_thread import LoopThread
from onnxpress.runtime.guards.settings import GuardSettings, Place
from onnxpress.runtime.guards.watching import Looking, OutputWatch

_LOG = logging.getLogger("onnxpress.guards")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a guard did with the texts of a request, or with a piece of a stream. Without the texts."""

    guard: str
    place: Place
    blocked: bool
    failed: bool
    """It could not tell. They are blocked then, unless its `on_failure` is `pass`."""


class Guards:
    """Guards in the order in which they were configured. Safe to use from threads and from any event loop."""

    def __init__(self, guards: Iterable[Guard] = (), *, on_decision: Callable[[Decision], None] | None = None) -> None:
        """
        Args:
            guards: with different names; they are closed with this.
            on_decision: hears of each, in the thread or loop of whoever asks. Must not raise.

        Raises:
            InvalidInputError: two have the same name.
        """
        self._guards = tuple(guards)
        names = [guard.settings.name for guard in self._guards]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"two guards are called {name!r}; give one another name")
        self._on_decision = on_decision
        self._lock = threading.Lock()
        self._counts: collections.Counter[Decision] = collections.Counter()
        self._thread = LoopThread()

    @classmethod
    def load(
        cls,
        settings: Iterable[GuardSettings],
        *,
        threads: int | None = None,
        most_waiting: int = 1024,
        most_tokens: int | None = None,
        on_decision: Callable[[Decision], None] | None = None,
    ) -> Self:
        """Load bundles, run each once, and find callables.

        Args:
            settings: of each guard.
            threads: of each bundle; None for what `onnxpress.load` chooses.
            most_waiting: windows of texts that may wait, for each bundle.
            most_tokens: of a request's texts as a guard reads them, in all windows and forms; None for no limit.
            on_decision: hears of each.

        Raises:
            OnnxpressError: a guard cannot be loaded; the text begins with its name.
        """
        loaded: list[Guard] = []
        try:
            for each in settings:
                if each.bundle is None:
                    loaded.append(CallingGuard.load(each))
                    continue
                loaded.append(
                    ClassifyingGuard.load(each, threads=threads, most_waiting=most_waiting, most_tokens=most_tokens)
                )
            return cls(loaded, on_decision=on_decision)
        except OnnxpressError:
            for guard in loaded:
                guard.close()
            raise

    def __iter__(self) -> Iterator[Guard]:
        return iter(self._guards)

    def __len__(self) -> int:
        return len(self._guards)

    @property
    def counts(self) -> dict[Decision, int]:
        """How often each was made so far."""
        with self._lock:
            return dict(self._counts)

    def watching(self, place: Place, model: str | None = None) -> list[Guard]:
        """Those that look at a model's texts at a place."""
        return [guard for guard in self._guards if guard.settings.watches(place, model)]

    async def check_async(self, texts: str | Sequence[str], place: Place, model: str | None = None) -> None:
        """Have texts looked at.

        Args:
            texts: whole.
            place: where they are.
            model: its name, where models have names.

        Raises:
            BlockedError: a guard stops one of them. Of several guards, the one that was configured first.
            GuardError: none stops them, but one could not tell.
            InvalidInputError: one of them cannot be looked at: it is no valid Unicode, or too long.
            QueueFullError: too much is waiting for a guard.
        """
        guards = self.watching(place, model)
        items = [texts] if isinstance(texts, str) else list(texts)
        if guards and items:
            await self._look([Looking(guard, items) for guard in guards], place)

    def check(self, texts: str | Sequence[str], place: Place, model: str | None = None) -> None:
        """The same for threads."""
        if self.watching(place, model):
            self._thread.run(self.check_async(texts, place, model))

    def watch(self, model: str | None = None) -> OutputWatch:
        """For one answer of a model, while it is written."""
        return OutputWatch(self.watching("output", model), lambda looking: self._look(looking, "output"))

    def watched(self, pieces: Iterable[str], model: str | None = None) -> Iterator[str]:
        """Pieces of an answer, such as of `model.stream(...)`, as they may be shown; for threads.

        Raises:
            BlockedError, GuardError: as of `check_async`. `pieces` is closed then, and nothing of what was stopped has
                been given.
        """
        watch = self.watch(model)
        with contextlib.ExitStack() as stack:
            if (close := getattr(pieces, "close", None)) is not None:
                stack.callback(close)
            for piece in pieces:
                if text := (self._thread.run(watch.feed(piece)) if watch.guarded else piece):
                    yield text
            if rest := (self._thread.run(watch.finish()) if watch.guarded else ""):
                yield rest

    async def watched_async(self, pieces: AsyncIterator[str], model: str | None = None) -> AsyncIterator[str]:
        """The same for event loops."""
        watch = self.watch(model)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(watch.close)
            if (close := getattr(pieces, "aclose", None)) is not None:
                stack.push_async_callback(close)
            async for piece in pieces:
                if text := await watch.feed(piece):
                    yield text
            if rest := await watch.finish():
                yield rest

    def close(self, timeout: float | None = None) -> None:
        """Finish what was taken, and give back what the guards hold."""
        for guard in self._guards:
            guard.close(timeout)
        self._thread.close()

    async def _look(self, looking: Sequence[Looking], place: Place) -> None:
        """
        Raises:
            BlockedError: the first that stops its texts.
            Exception: else what the first raised that failed.
        """
        outcomes = await asyncio.gather(*(self._outcome(each, place) for each in looking))
        for kind in (BlockedError, Exception):
            for outcome in outcomes:
                if isinstance(outcome, kind):
                    raise outcome

    async def _outcome(self, looking: Looking, place: Place) -> Exception | None:
        """What stops the texts; None when they pass."""
        guard = looking.guard
        settings = guard.settings
        try:
            async with asyncio.timeout(settings.seconds):
                finding = await guard.look(looking.texts)
        except guard.passed_on as error:
            # A client is to blame for what it sent; for an answer it is not.
            if place == "output" and isinstance(error, InvalidInputError):
                return self._failed(settings, place, error, always=True)
            return error
        # Whatever happens in a guard must stop what it should have looked at.
        except Exception as error:  # noqa: BLE001
            return self._failed(settings, place, error)
        if finding is None:
            self._decided(Decision(settings.name, place, blocked=False, failed=False))
            return None
        return self._blocked(settings, place, finding)

    def _blocked(self, settings: GuardSettings, place: Place, finding: Finding) -> Exception:
        score = "" if finding.score is None else f" ({finding.score:.3f})"
        _LOG.info("the guard %r stopped the %s: %s%s", settings.name, place, finding.label, score)
        self._decided(Decision(settings.name, place, blocked=True, failed=False))
        return BlockedError(settings.name, finding.label, finding.score, place, finding.index)

    def _failed(
        self, settings: GuardSettings, place: Place, error: Exception, *, always: bool = False
    ) -> Exception | None:
        blocked = always or settings.on_failure == "block"
        late = isinstance(error, TimeoutError)
        what = f"gave no answer within {settings.seconds:g} seconds" if late else "failed"
        # What an exception says may have the text in it.
        where = "" if late else f" ({type(error).__name__}{_place_of(error)})"
        fate = "stopped" if blocked else "passed"
        _LOG.error("the guard %r %s%s; the %s was %s", settings.name, what, where, place, fate)
        self._decided(Decision(settings.name, place, blocked=blocked, failed=True))
        return GuardError(settings.name, place, what) if blocked else None

    def _decided(self, decision: Decision) -> None:
        with self._lock:
            self._counts[decision] += 1
        if self._on_decision is not None:
            self._on_decision(decision)


def _place_of(error: BaseException) -> str:
    """File and line where it was raised."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
