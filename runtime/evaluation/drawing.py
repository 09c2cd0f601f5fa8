"""Examples of several files together, and a sample of them where there are more than asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from onnxpress.runtime.data.options import EVALUATION_SAMPLES, Source
from onnxpress.runtime.data.sampling import Sample, sample
from onnxpress.runtime.errors import InvalidInputError

T = TypeVar("T")


def draw(sources: Sequence[Source], size: int | None, read: Callable[[Source], Iterator[T]], nothing: str) -> Sample[T]:
    """A sample of the examples of all sources.

    Args:
        sources: what to read, in order.
        size: how many to keep; None: `EVALUATION_SAMPLES`.
        read: gives the examples of one, as a stream.
        nothing: what a source without an example lacks, for the error.

    Raises:
        InvalidInputError: a source has no example.
    """

    def stream() -> Iterator[T]:
        for source in sources:
            found = False
            for example in read(source):
                found = True
                yield example
            if not found:
                raise InvalidInputError(f"{source} has no {nothing}")

    return sample(stream(), size or EVALUATION_SAMPLES)


def listed(sources: Sequence[Source]) -> str:
    """Their paths, for an error about all of them."""
    return ", ".join(str(source.path) for source in sources)
