"""Keeps the libraries underneath from writing over the progress display."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """While inside, whatever goes to stdout and stderr, from Python or from native code, goes to a file that is
    dropped - or shown on stderr, when `verbose`.

    Warnings and log records below ERROR are not shown either. File descriptors are redirected, because torch and
    onnxruntime also print from C++.
    """
    with tempfile.TemporaryFile() as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        if not verbose:
            logging.disable(logging.WARNING)
        try:
            with _descriptors_to(2 if verbose else caught.fileno()), _streams_to_descriptors():
                yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _streams_to_descriptors() -> Iterator[None]:
    """Let Python's streams write to descriptors 1 and 2 also where they do not by themselves, as in a notebook."""
    with (
        os.fdopen(os.dup(1), "w", buffering=1, errors="replace") as out,
        os.fdopen(os.dup(2), "w", buffering=1, errors="replace") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield


@contextlib.contextmanager
def _descriptors_to(target: int) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    try:
        for number in saved:
            os.dup2(target, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
