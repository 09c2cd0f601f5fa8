"""What a search must keep: an accuracy, and a time."""

from __future__ import annotations

import dataclasses
import time

from onnxpress.exporter.search.plan import OutOfTimeError
from onnxpress.runtime.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Limit:
    """How much accuracy a graph must keep."""

    max_drop: float | None
    """Against float32, as `Evaluation.loss` counts it."""
    min_metric: float | None
    """The worst primary figure that is accepted."""

    def holds(self, evaluation: Evaluation, before: float, after: float) -> bool:
        """Whether a graph that has come from one figure to another keeps it; one without a figure does not."""
        # Not the other way round: a figure that is no number keeps nothing.
        dropped = self.max_drop is None or evaluation.loss(before, after) <= self.max_drop
        if self.min_metric is None:
            return dropped
        return dropped and evaluation.loss(self.min_metric, after) <= 0

    def words(self, evaluation: Evaluation) -> str:
        """The limit in a sentence: "loses at most 1 point"."""
        parts = []
        if self.max_drop is not None:
            parts.append(f"loses at most {evaluation.amount(self.max_drop)}")
        if self.min_metric is not None:
            side = "at most" if evaluation.metric == "perplexity" else "at least"
            parts.append(f"has {side} {self.min_metric:g} in {evaluation.metric.replace('_', ' ')}")
        return " and ".join(parts)


class Budget:
    """How much time is left for what is not known yet."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - self.spent

    def check(self) -> None:
        """
        Raises:
            OutOfTimeError: nothing is left.
        """
        if self.left <= 0:
            raise OutOfTimeError
