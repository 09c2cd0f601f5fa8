"""An answer while it is written: text leaves only after whatever passage it may belong to was looked at.

With H the largest `hold_characters` of its guards. Checks are made at places c_1 < c_2 < ... of the text. What check k
looks at begins 2 H characters before c_(k-1) and ends at c_k. After it passed, the text up to c_k - H may leave.
A passage of at most H characters from a to b, with k the first check with c_k >= b: c_(k-1) < b <= a + H. So all that
had left before check k, up to c_(k-1) - H, ends before a, and check k sees the passage whole, with at least H
characters before it where there are so many. If it stops it, nothing of the passage has left.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from onnxpress.runtime.guards.checkpoints import Checkpoints
from onnxpress.runtime.guards.guard import Guard

_CHECKS_PER_HOLD = 4
"""Checks are H / 4 characters apart, or more: each character is looked at ten times at most."""
_MOST_DUE = 8
"""Checks that wait while others run. With more, whoever brings text waits, too."""


@dataclasses.dataclass(frozen=True)
class Looking:
    """A guard, and what it is to look at."""

    guard: Guard
    texts: Sequence[str]


class OutputWatch:
    """One answer. For one task of an event loop, the same from beginning to end."""

    def __init__(self, guards: Sequence[Guard], look: Callable[[Sequence[Looking]], Awaitable[None]]) -> None:
        """
        Args:
            guards: that look at it.
            look: has guards look at texts, and raises where one stops them.
        """
        self._guards = guards
        self._look = look
        self._in_windows = [guard for guard in guards if guard.settings.stream == "window"]
        self._whole = len(self._in_windows) < len(guards)
        self._hold = max((guard.settings.hold_characters for guard in self._in_windows), default=0)
        self._points = Checkpoints(max(1, self._hold // _CHECKS_PER_HOLD))
        self._text = ""  # that is still needed
        self._start = 0  # its place in the answer
        self._seen = 0  # where the next check begins
        self._cleared = 0
        self._due: list[tuple[str, int]] = []
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self.released = 0
        """Characters of the answer that have left."""

    @property
    def guarded(self) -> bool:
        """Whether any guard looks at it; else all text leaves as it comes."""
        return bool(self._guards)

    @property
    def failed(self) -> bool:
        """Whether it is over: a guard stopped it, or could not tell."""
        return self._error is not None

    async def feed(self, text: str) -> str:
        """Take what was written, and return what may leave now; both may be empty. Checks run meanwhile; it waits for
        them only where many are due.

        Raises:
            BlockedError: a guard stops the answer, now or before. What was not returned must not leave.
            GuardError: a guard could not tell.
            QueueFullError: too much is waiting for a guard.
        """
        self._raise()
        if not self._guards:
            self.released += len(text)
            return text
        self._text += text
        for point in self._points.feed(text) if self._in_windows else ():
            self._add_due(point)
        self._start_checking()
        while len(self._due) > _MOST_DUE:
            await self._wait()
        self._raise()
        return "" if self._whole else self._take(self._cleared)

    async def finish(self) -> str:
        """The rest, after all checks. Errors as of `feed`."""
        self._raise()
        while self._task is not None:
            await self._wait()
        self._raise()
        end = self._start + len(self._text)
        if self._guards and end:
            last = [] if end == self._points.last else [self._text[max(0, self._seen - self._start) :]]
            texts = {"window": last, "whole": [self._text]}
            looking = [Looking(guard, texts[guard.settings.stream]) for guard in self._guards]
            try:
                await self._look([each for each in looking if each.texts])
            except Exception as error:
                self._error = error
                raise
        return self._take(end)

    def close(self) -> None:
        """Nobody waits for the answer any more. To be called where it ends without `finish`; then checks that run are
        given up."""
        if self._task is not None:
            self._task.cancel()

    def _add_due(self, point: int) -> None:
        begin = max(0, self._seen - self._start)
        self._due.append((self._text[begin : point - self._start], point))
        self._seen = max(0, point - 2 * self._hold)

    def _start_checking(self) -> None:
        if self._due and self._task is None:
            self._task = asyncio.create_task(self._check())

    async def _check(self) -> None:
        """All that is due, and what comes to be due meanwhile."""
        try:
            while self._due:
                due, self._due = self._due, []
                texts = [text for text, _ in due]
                await self._look([Looking(guard, texts) for guard in self._in_windows])
                self._cleared = max(self._cleared, due[-1][1] - self._hold)
        # It is raised where the answer's task is.
        except Exception as error:  # noqa: BLE001
            self._error = error
            self._due = []
        finally:
            self._task = None

    async def _wait(self) -> None:
        """Until something that runs is done."""
        if self._task is None:
            return
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self.close()
            raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _take(self, end: int) -> str:
        """What has not left yet, up to a place; what no check needs any more is forgotten."""
        text = self._text[max(0, self.released - self._start) : max(0, end - self._start)]
        self.released = max(self.released, end)
        if not self._whole:
            needed = min(self._seen, self.released)
            self._text, self._start = self._text[needed - self._start :], needed
        return text
