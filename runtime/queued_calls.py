"""Calls as a queue has them: their sequences, which go through the graph together with those of others, and the promise
of what comes out. A run that fails is the affair of the call that made it fail, and of no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from onnxpress.runtime.encoder import Encoder
from onnxpress.runtime.errors import DeadlineExceededError
from onnxpress.runtime.tasks.steps import Row, Work


class Call:
    """The sequences of one call, and the promise of the graph's outputs for them."""

    __slots__ = ("begun", "deadline", "ended", "error", "items", "left", "rows", "since", "wake", "work")

    def __init__(self, work: Work, deadline: float | None, wake: Callable[[list[Call]], None]) -> None:
        """
        Args:
            work: at least one sequence.
            deadline: in seconds of `time.monotonic()`; a call that still waits by then is not run.
            wake: is given calls with the same `wake` that are done at the same time; called in any thread.
        """
        self.work = work
        self.deadline = deadline
        self.wake = wake
        self.since = time.monotonic()
        self.begun = 0.0
        """When the first of its sequences began to run; 0 before."""
        self.ended = 0.0
        self.items = [Item(self, index, len(encoding)) for index, encoding in enumerate(work.encodings)]
        self.left = len(self.items)
        """Sequences without outputs; 0 when it is done, or given up."""
        self.rows: list[Row] = [{}] * self.left
        self.error: BaseException | None = None


class Item:
    """A sequence of a call."""

    __slots__ = ("call", "index", "length")

    def __init__(self, call: Call, index: int, length: int) -> None:
        self.call = call
        self.index = index
        self.length = length


class Batch:
    """Sequences that go through the graph together."""

    __slots__ = ("alone", "items", "slots")

    def __init__(self, items: list[Item], slots: int, alone: bool) -> None:
        self.items = items
        self.slots = slots
        self.alone = alone


def outputs_of(batch: Batch, encoder: Encoder) -> list[Row | Exception]:
    """What each sequence of a batch became. Where the batch fails, the calls in it are run one by one."""
    try:
        return [*_run(batch.items, batch.alone, encoder)]
    # onnxruntime's exception classes have no common base but Exception, and each belongs to a caller.
    except Exception as error:  # noqa: BLE001
        return _one_by_one(batch, error, encoder)


def late_error() -> DeadlineExceededError:
    """What a call gets whose time has passed."""
    return DeadlineExceededError("no answer within the time allowed; allow more, send less at once, or try again later")


def wake_all(calls: Sequence[Call]) -> None:
    """Tell those who wait, each kind at once."""
    by_wake: dict[Callable[[list[Call]], None], list[Call]] = {}
    for call in calls:
        by_wake.setdefault(call.wake, []).append(call)
    for wake, ready in by_wake.items():
        wake(ready)


def _one_by_one(batch: Batch, error: Exception, encoder: Encoder) -> list[Row | Exception]:
    calls = list(dict.fromkeys(item.call for item in batch.items))
    if len(calls) == 1:
        return [error] * len(batch.items)
    results: dict[Item, Row | Exception] = {}
    for call in calls:
        items = [item for item in batch.items if item.call is call]
        try:
            results.update(zip(items, _run(items, batch.alone, encoder), strict=True))
        # As above.
        except Exception as own:  # noqa: BLE001
            results.update(dict.fromkeys(items, own))
    return [results[item] for item in batch.items]


def _run(items: Sequence[Item], alone: bool, encoder: Encoder) -> list[Row]:
    names = items[0].call.work.extra or ()
    extra = {name: [(item.call.work.extra or {})[name][item.index] for item in items] for name in names}
    encodings = [item.call.work.encodings[item.index] for item in items]
    return encoder.run_batch(encodings, extra, alone=alone)
