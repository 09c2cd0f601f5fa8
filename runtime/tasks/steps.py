"""A task's method in two halves: what is done before the graph runs, and what is made of its outputs.

A method decorated with `in_steps` is written as a generator that yields its `Work` once and is sent the outputs. Called
directly it runs the graph itself. A `BatchingRunner` takes the same generator, `method.steps`, lets the work of many
callers run together, and goes on with each: so every task can be shared, and none knows how.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxpress.runtime.token_sequences import Encoded

P = ParamSpec("P")
R = TypeVar("R")

Row = dict[str, npt.NDArray[np.float32]]
"""The graph's outputs for one sequence, by name, without padding."""


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """Sequences for the graph, and its further inputs, as `Encoder.run` has them."""

    encodings: Sequence[Encoded]
    extra: Mapping[str, Sequence[Sequence[int]]] | None = None


Steps = Generator[Work, list[Row], R]
"""Yields work at most once, is sent a row for each sequence, returns the result."""


def begin(steps: Steps[R]) -> tuple[Work | None, R | None]:
    """The work to run, or None and the result where there is nothing to run."""
    try:
        return next(steps), None
    except StopIteration as end:
        return None, end.value


def finish(steps: Steps[R], rows: list[Row]) -> R:
    """The result, from the outputs for the work that was yielded."""
    try:
        steps.send(rows)
    except StopIteration as end:
        result: R = end.value
        return result
    raise AssertionError("a method in steps yields its work once")


def in_steps(method: Callable[P, Steps[R]]) -> Callable[P, R]:
    """A method of a `TaskModel` from one written in steps. Its `steps` attribute is the method as it was written."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        steps = method(*args, **kwargs)
        try:
            work = next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        model: Any = args[0]
        return finish(steps, model.encoder.run(work.encodings, work.extra))

    run.steps = method  # type: ignore[attr-defined]
    return run
