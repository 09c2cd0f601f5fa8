"""What calls and runs of a `BatchingRunner` took, one by one: for logs, metrics and bills. Sums: queue_counts.py."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class CallReport:
    """Of one call; filled in while it goes on, complete when it returns. See `BatchingRunner.within`."""

    started: float = 0.0
    """When the first call that it is given to began, in seconds of `time.monotonic()`; 0 before."""
    sequences: int = 0
    """Texts, pairs, or windows of long texts."""
    tokens: int = 0
    """Of all sequences, after they were cut to what the model reads, special tokens included."""
    tokenize_seconds: float = 0.0
    """That checking and tokenizing took."""
    wait_seconds: float = 0.0
    """From then until the first of its sequences began to run."""
    run_seconds: float = 0.0
    """From then until the last was done; others may have run meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchReport:
    """Of one run of the graph."""

    sequences: int
    tokens: int
    """Without padding."""
    padded_tokens: int
    seconds: float
