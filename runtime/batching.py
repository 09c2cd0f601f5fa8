"""Cuts a list of token sequences into batches and runs them side by side, giving results in the caller's order.

Texts are sorted by length so that little is padding, and a batch holds a bounded number of tokens so that its
activations stay in the processor's caches. Batches of about 512 tokens on one thread each beat one batch on all
threads: no operator waits for the slowest thread (design: bench/embed.py measures it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from onnxpress.runtime.pool import Lease
from onnxpress.runtime.processes import HomeProcess

R = TypeVar("R")

TOKENS_PER_BATCH = 512
RUN_TOKENS = 20
"""What a run costs beside its tokens, in tokens: so much padding is worth avoiding with one more run."""
_LEAST_TOKENS = 64  # below this a batch is mostly the fixed cost of a run


def plan_batches(lengths: Sequence[int], tokens_per_batch: int = TOKENS_PER_BATCH) -> list[list[int]]:
    """Indices into `lengths`, grouped into batches, longest sequences first.

    A batch of n sequences, the longest with m tokens, has n * m <= tokens_per_batch, or n = 1.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def plan_fixed(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices into `lengths` in batches of `size`, longest sequences first."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    return [order[start : start + size] for start in range(0, len(order), size)]


def tokens_per_batch(lengths: Sequence[int], workers: int, most: int = TOKENS_PER_BATCH) -> int:
    """Tokens for each batch, `most` at most, so that all workers end at about the same time: the number of batches is a
    multiple of `workers`, unless the texts are so few that this would make tiny ones."""
    total = sum(lengths)
    rounds = -(-total // (most * workers))
    return max(_LEAST_TOKENS, -(-total // max(1, rounds * workers)))


def choose_batch(lengths: Sequence[int], tokens: int) -> list[int]:
    """Indices of the sequences to run together with the first one.

    All are cut into batches by their lengths, longest first: one ends where `tokens` are full, padding included, or
    where padding what comes next would cost more than a run of its own. The batch with the first sequence is returned.

    Args:
        lengths: in tokens, at least one.
        tokens: of a batch at most.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batch: list[int] = []
    longest = 1
    for place, index in enumerate(order):
        length = lengths[index]
        if batch:
            room = min(tokens // longest - len(batch), len(order) - place)
            if room < 1 or (longest - length) * room > RUN_TOKENS:
                if 0 in batch:
                    return batch
                batch = []
        if not batch:
            longest = max(1, length)
        batch.append(index)
    return batch


class SideBySide:
    """Runs batches of one model side by side, in the threads that all models of the process share."""

    def __init__(self, workers: int) -> None:
        self.count = workers
        self.home = HomeProcess()
        self._lease = Lease(workers)

    def map(self, function: Callable[[list[int]], R], batches: Sequence[list[int]]) -> list[R]:
        """`function` of every batch, results in the order of `batches`. The first exception is raised."""
        self.home.check()
        if self.count == 1 or len(batches) == 1:
            return [function(batch) for batch in batches]
        return self._lease.map(function, batches)

    def close(self) -> None:
        """Give the threads back; they end when no other model uses them. A later `map` takes them again."""
        self._lease.close()
