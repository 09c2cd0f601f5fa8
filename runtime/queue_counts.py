"""What a runner has done so far and holds now: for tests, logs and the metrics of a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxpress.runtime.call_report import BatchReport


@dataclasses.dataclass(frozen=True)
class QueueCounts:
    """A look at a runner. Counts go from its start; of two looks take the difference."""

    waiting: int
    """Sequences that wait now. A call has one for each text, pair or window."""
    running: int
    """Runs of the graph at the moment, counted in workers: a run that has all threads counts as all of them."""
    calls: int
    """Calls that were taken."""
    refused: int
    """Calls that were not taken, for the queue was full or too slow for their time (`QueueFullError`)."""
    expired: int
    """Calls whose time passed (`DeadlineExceededError`)."""
    cancelled: int
    """Calls whose caller left: a cancelled task, Ctrl-C."""
    failed: int
    """Calls that failed while the graph ran."""
    batches: int
    """Runs of the graph."""
    sequences: int
    """Sequences that were run."""
    tokens: int
    """Their tokens, without padding."""
    padded_tokens: int
    """The same with padding."""
    waited_seconds: float
    """That all sequences waited before their run began, together."""
    longest_wait_seconds: float
    """Of one sequence."""
    run_seconds: float
    """That all runs took, together; several may go side by side."""
    batch_sizes: dict[int, int]
    """Runs by their number of sequences, rounded up to a power of two."""


class Counter:
    """Counts for one queue, which holds its lock meanwhile."""

    def __init__(self) -> None:
        self.calls = self.refused = self.expired = self.cancelled = self.failed = 0
        self._batches = self._sequences = self._tokens = self._padded_tokens = 0
        self._waited = self._longest_wait = self._run = 0.0
        self._sizes: dict[int, int] = {}

    def add_batch(self, lengths_and_waits: Sequence[tuple[int, float]], seconds: float) -> BatchReport:
        """A run has ended.

        Args:
            lengths_and_waits: of each sequence its tokens, and the seconds it waited.
            seconds: that the run took.
        """
        count = len(lengths_and_waits)
        lengths = [length for length, _ in lengths_and_waits]
        waits = [wait for _, wait in lengths_and_waits]
        self._run += seconds
        self._batches += 1
        self._sequences += count
        report = BatchReport(count, sum(lengths), count * max(lengths), seconds)
        self._tokens += report.tokens
        self._padded_tokens += report.padded_tokens
        self._waited += sum(waits)
        self._longest_wait = max(self._longest_wait, *waits)
        size = 1 << (count - 1).bit_length()
        self._sizes[size] = self._sizes.get(size, 0) + 1
        return report

    def snapshot(self, waiting: int, running: int) -> QueueCounts:
        """The counts as they are."""
        return QueueCounts(
            waiting=waiting,
            running=running,
            calls=self.calls,
            refused=self.refused,
            expired=self.expired,
            cancelled=self.cancelled,
            failed=self.failed,
            batches=self._batches,
            sequences=self._sequences,
            tokens=self._tokens,
            padded_tokens=self._padded_tokens,
            waited_seconds=self._waited,
            longest_wait_seconds=self._longest_wait,
            run_seconds=self._run,
            batch_sizes=dict(sorted(self._sizes.items())),
        )
