"""A fork has none of the threads of the process it came from, so what uses threads must stay where it was made."""

from __future__ import annotations

import os

from onnxpress.runtime.errors import ForkError


class HomeProcess:
    """The process in which it is made."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_this(self) -> bool:
        """Whether this is that process, and not a fork of it."""
        return os.getpid() == self._id

    def check(self) -> None:
        """
        Raises:
            ForkError: this is a fork.
        """
        if not self.is_this:
            raise ForkError(
                f"this model was loaded in process {self._id} and is used in its fork {os.getpid()}, where its "
                "threads do not exist; load it in each worker, after the fork (or start workers with 'spawn')"
            )
