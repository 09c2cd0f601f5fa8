"""Waiting for what another thread or process is about to do."""

from __future__ import annotations

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
