"""Calls of many threads and tasks, run together: which sequences wait, which go next, and who runs them.

A call that finds nothing else to do is run by its own thread at once, with all threads of the model. Others wait until
a worker is free, which then takes the sequence that has waited longest and those of about its length: so batches form
by themselves while the processor is busy, and nothing waits while it is not. Knows nothing of texts and tasks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NoReturn

from onnxpress.runtime.batching import choose_batch, tokens_per_batch
from onnxpress.runtime.call_report import BatchReport
from onnxpress.runtime.encoder import Encoder
from onnxpress.runtime.errors import ClosedError, InvalidInputError, OnnxpressError, QueueFullError
from onnxpress.runtime.pool import Lease
from onnxpress.runtime.queue_counts import Counter, QueueCounts
from onnxpress.runtime.queued_calls import Batch, Call, Item, late_error, outputs_of, wake_all
from onnxpress.runtime.tasks.steps import Row

_LOG = logging.getLogger("onnxpress")
_LOOK_AHEAD = 512  # sequences that are considered for a batch


class CallQueue:
    """The calls that wait for one encoder. Safe to use from many threads."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        most_waiting: int,
        tokens: int,
        max_wait: float,
        most_tokens: int | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        """
        Args:
            encoder: computes.
            most_waiting: sequences that may wait; a call that brings more is taken only while nothing waits.
            tokens: of a batch at most, padding included; a longer sequence is a batch of its own.
            max_wait: seconds that a sequence waits for others to fill its batch while a worker is free.
            most_tokens: of all sequences of a call; None for no limit.
            on_batch: hears of each run after it, in the thread that ran it. What it raises is logged.
        """
        self._encoder = encoder
        self._most_waiting = most_waiting
        self._tokens = tokens
        self._max_wait = max_wait
        self._most_tokens = most_tokens
        self._on_batch = on_batch
        self._slots = encoder.graph.workers
        self._free = self._slots  # runs that may begin
        self._running = 0  # slots of the runs that have begun
        self._starting = 0  # slots for workers that have not begun
        self._lease = Lease(self._slots)
        self._items: dict[Item, None] = {}  # that wait, oldest first
        self._crowded = False  # another call was there when the last one came
        self._closing = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._counter = Counter()

    @property
    def counts(self) -> QueueCounts:
        """What it has done so far, and what it holds."""
        with self._lock:
            return self._counter.snapshot(len(self._items), self._running)

    def check(self) -> None:
        """
        Raises:
            ForkError: this is not the process it was made in.
            ClosedError: it was closed.
        """
        self._lease.home.check()
        if self._closing:
            raise ClosedError("this runner is closed; make a new BatchingRunner over the model")

    def check_room(self, seconds: float | None = None) -> None:
        """For those who can ask before they have the sequences of a call, so that what is refused costs little.

        Args:
            seconds: that the call may take; None for no limit.

        Raises:
            QueueFullError: no sequence may come now, for too many wait, or the one whose turn is next has waited half
                of `seconds` for it: this call would hardly be served in time.
        """
        with self._lock:
            waiting = len(self._items)
            if waiting >= self._most_waiting:
                self._refuse(f"{waiting} sequences are waiting and {self._most_waiting} may")
            if waiting and seconds is not None:
                # Not that which it waits for others to come, which ends early enough for this call.
                waited = time.monotonic() - next(iter(self._items)).call.since - self._max_wait
                if waited > seconds / 2:
                    self._refuse(
                        f"calls wait {waited:.3g} seconds for their turn, which leaves too little of the "
                        f"{seconds:g} seconds allowed"
                    )

    def check_tokens(self, tokens: int) -> None:
        """
        Raises:
            InvalidInputError: a call has more than allowed.
        """
        if self._most_tokens is not None and tokens > self._most_tokens:
            raise InvalidInputError(
                f"the texts have {tokens:,} tokens together, {self._most_tokens:,} are allowed; send fewer at once"
            )

    def run(self, call: Call, *, here: bool) -> bool:
        """Take a call: run it now if nothing is before it and `here` is set, else let it wait for a worker.

        Returns:
            whether it is done.

        Raises:
            QueueFullError: too many sequences wait.
            DeadlineExceededError: its time has passed already.
            ClosedError, ForkError: as of `check`.
        """
        self._lease.home.check()
        batch, starting = None, 0
        try:
            with self._lock:
                batch, starting = self._take(call, here)
            if batch is None:
                self._submit(starting)
            else:
                self._finish(batch, self._outputs(batch))
        except OnnxpressError:  # it was not taken
            raise
        # Ctrl-C, say, which may come between any two of these: whoever waits must not wait for ever.
        except BaseException:
            if batch is None:
                self.give_up(call)
                self._submit(starting)  # some may have been before
            raise
        finally:
            if batch is not None:
                self._end_here(batch.slots)
        return batch is not None

    def give_up(self, call: Call) -> bool:
        """Nobody waits for a call any more: what of it waits leaves the queue. False when it is done already."""
        with self._lock:
            found = self._drop(call)
            self._counter.cancelled += found
            return found

    def expire(self, call: Call) -> bool:
        """The same where its time has passed."""
        with self._lock:
            found = self._drop(call)
            self._counter.expired += found
            return found

    def close(self, *, drain: bool, timeout: float | None = None) -> bool:
        """Take no more calls and wait for those that were taken. In a fork, nothing.

        Args:
            drain: run what waits; else it fails with `ClosedError`.
            timeout: seconds to wait; None for no limit.

        Returns:
            whether all is done.
        """
        if not self._lease.home.is_this:
            return True
        calls: list[Call] = []
        try:
            with self._changed:
                self._closing = True
                calls += [] if drain else dict.fromkeys(item.call for item in self._items)
                for call in calls:
                    self._drop(call)
                    call.error = ClosedError("the runner was closed while the call waited")
                self._changed.notify_all()  # workers that wait for more to come
        finally:
            wake_all(calls)
        with self._changed:
            done = self._changed.wait_for(lambda: self._free == self._slots and not self._items, timeout)
        if done:
            self._lease.close()
        return done

    # Whoever calls these holds the lock.

    def _take(self, call: Call, here: bool) -> tuple[Batch | None, int]:
        """A batch to run here and now; or none, and how many workers are to start."""
        self.check()
        if call.deadline is not None and call.deadline <= time.monotonic():
            self._counter.expired += 1
            raise late_error()
        items, waiting = call.items, len(self._items)
        idle = self._free == self._slots and not waiting
        self._crowded = not idle
        if here and self._free and not waiting and not self._max_wait and self._is_one_batch(items):
            self._counter.calls += 1
            return self._take_slots(items), 0
        if waiting and waiting + len(items) > self._most_waiting:
            self._refuse(f"{waiting} sequences are waiting and {self._most_waiting} may")
        self._counter.calls += 1
        self._items.update(dict.fromkeys(items))
        if self._max_wait:
            self._changed.notify_all()
        return None, self._start_workers()

    def _refuse(self, why: str) -> NoReturn:
        self._counter.refused += 1
        raise QueueFullError(f"{why}; try again later")

    def _is_one_batch(self, items: Sequence[Item]) -> bool:
        return len(items) == 1 or len(self._encoder.graph.plan([item.length for item in items])) == 1

    def _take_slots(self, items: list[Item]) -> Batch:
        """A batch may have all threads if nothing else needs them."""
        slots = self._slots if self._free == self._slots and not self._crowded and not self._items else 1
        batch = Batch(items, slots, alone=slots == self._slots)
        self._free -= slots
        self._running += slots
        return batch

    def _start_workers(self) -> int:
        """As many as may have something to do."""
        count = min(self._free, len(self._items))
        self._free -= count
        self._starting += count
        return count

    def _give_back(self, slots: int) -> None:
        self._free += slots
        if self._closing and self._free == self._slots and not self._items:
            self._changed.notify_all()

    def _drop(self, call: Call) -> bool:
        if not call.left:
            return False
        call.left = 0
        for item in call.items:
            self._items.pop(item, None)
        call.items = []
        self._give_back(0)
        return True

    def _pause(self) -> float:
        """Seconds to wait for a fuller batch: as many as no sequence waits too long, or half of what its call has."""
        if self._closing or not self._items or not self._max_wait:
            return 0.0
        seen = list(islice(self._items, _LOOK_AHEAD))
        if sum(item.length for item in seen) >= self._tokens:
            return 0.0
        oldest = seen[0].call.since + self._max_wait
        halves = [
            (each.since + each.deadline) / 2 for each in (item.call for item in seen) if each.deadline is not None
        ]
        return min([oldest, *halves]) - time.monotonic()

    def _choose(self) -> list[Item]:
        """The sequences to run next, taken off the queue."""
        seen = list(islice(self._items, _LOOK_AHEAD))
        lengths = [item.length for item in seen]
        budget = min(self._tokens, tokens_per_batch(lengths, self._free + 1, self._tokens))
        items = [seen[index] for index in choose_batch(lengths, budget)]
        for item in items:
            del self._items[item]
        return items

    # Running

    def _submit(self, workers: int) -> None:
        for _ in range(workers):
            try:
                self._lease.submit(self._work)
            except RuntimeError:  # the system gives no thread, so this one works
                self._work()

    def _work(self) -> None:
        """A worker: batch after batch while there are any. It begins with a slot, if there is one for it."""
        with self._lock:
            if not self._starting:
                return
            self._starting -= 1
        slots = 1
        while (batch := self._next(slots)) is not None:
            self._finish(batch, self._outputs(batch))
            slots = batch.slots
            if self._lease.others_wait:  # another model's turn
                with self._lock:
                    self._give_back(slots)
                    starting = self._start_workers()
                self._submit(starting)
                return

    def _next(self, slots: int) -> Batch | None:
        """The next batch for a worker that has so many slots; None, and it has none, where nothing waits."""
        late: list[Call] = []
        with self._changed:
            self._free += slots - 1  # keeps one
            while (pause := self._pause()) > 0:
                self._changed.wait(pause)
            batch = None
            now = time.monotonic()
            while self._items and batch is None:
                items = self._choose()
                expired = {item.call for item in items if item.call.deadline is not None and item.call.deadline < now}
                for call in expired:
                    self._drop(call)
                    self._counter.expired += 1
                    call.error = late_error()
                late += expired
                items = [item for item in items if item.call not in expired]
                if items:
                    self._free += 1
                    batch = self._take_slots(items)
            if batch is None:
                self._give_back(1)
            starting = self._start_workers()
        wake_all(late)
        self._submit(starting)
        return batch

    def _end_here(self, slots: int) -> None:
        """A batch has been run in the thread of its call."""
        starting = 0
        try:
            with self._lock:
                self._give_back(slots)
                starting = self._start_workers()
        finally:
            self._submit(starting)

    def _outputs(self, batch: Batch) -> list[Row | Exception]:
        """What each sequence of a batch became, counted and reported."""
        begun = time.monotonic()
        for item in batch.items:
            item.call.begun = item.call.begun or begun
        try:
            return outputs_of(batch, self._encoder)
        finally:
            with self._lock:  # before anybody hears of a result: who has it must find it counted
                self._running -= batch.slots
                report = self._counter.add_batch(
                    [(item.length, begun - item.call.since) for item in batch.items], time.monotonic() - begun
                )
            self._tell(report)

    def _tell(self, report: BatchReport) -> None:
        if self._on_batch is None:
            return
        try:
            self._on_batch(report)
        # It is the application's own; callers get their results all the same.
        except Exception:  # noqa: BLE001
            _LOG.exception("on_batch failed")

    def _finish(self, batch: Batch, results: Sequence[Row | Exception]) -> None:
        """Hand out what a batch became, and wake those whose calls are done."""
        done = []
        with self._lock:
            for item, result in zip(batch.items, results, strict=True):
                call = item.call
                if not call.left:  # given up, or failed already
                    continue
                if isinstance(result, Exception):
                    self._drop(call)
                    self._counter.failed += 1
                    call.error = result
                else:
                    call.rows[item.index] = result
                    call.left -= 1
                if not call.left:
                    call.ended = time.monotonic()
                    call.items = []  # which hold it: circles stay until they are found
                    done.append(call)
        wake_all(done)
