"""A fork has none of the threads of the process it came from, so what uses threads must stay where it was made."""

from __future__ import annotations

import ctypes
import os
import weakref

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


_threaded: weakref.WeakSet[object] = weakref.WeakSet()


def keep_in_forks(thing: object) -> None:
    """Have forks never destroy a thing of onnxruntime: its end waits for its threads, which are not there."""
    _threaded.add(thing)


def _keep() -> None:
    """In a fork. What a variable holds is destroyed when the interpreter ends; so each gets a reference that nobody
    gives back."""
    take = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", ctypes.pythonapi))
    for thing in list(_threaded):
        take(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
