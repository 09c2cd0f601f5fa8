"""Waiting for what another thread or process is about to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST = 120.0
"""Seconds after which it does not come, also on a machine that does much else."""


def until(happened: Callable[[], object]) -> None:
    """Wait until it is true."""
    end = time.monotonic() + LONGEST
    while not happened():
        assert time.monotonic() < end, "this never came"
        time.sleep(0.005)


def no_thread(thread: threading.Thread) -> None:
    """`Thread.start` where the system gives no more threads."""
    raise RuntimeError("can't start new thread")
