"""Keeps the metrics current that can only be looked at: queues, caches, memory, readiness."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import onnxpress
from onnxpress.runtime.generation.engine import Engine, EngineState
from onnxpress.runtime.generation.scheduler import Counts
from onnxpress.runtime.machine import peak_memory_bytes, resident_memory_bytes
from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.metrics import Metrics
from onnxpress.runtime.server.registry import ServedModel

_SECONDS = 1.0


class Watch:
    """Looks at a service. Safe to use from any thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        metrics = service.metrics
        metrics.worker_start.set(time.time())
        self._looks = [_look(served, metrics, service.settings.limits.waiting) for served in service.models]

    async def keep(self) -> None:
        """Once a second, until cancelled."""
        while True:
            self.refresh()
            expected = time.monotonic() + _SECONDS
            await asyncio.sleep(_SECONDS)
            self._service.metrics.loop_delay.set(max(0.0, time.monotonic() - expected))

    def refresh(self) -> None:
        """Look now."""
        metrics = self._service.metrics
        metrics.ready_workers.set(self._service.phase == "ready")
        for kind, size in (("resident", resident_memory_bytes()), ("peak", peak_memory_bytes())):
            if size is not None:
                metrics.memory.labels(kind).set(size)
        with self._lock:
            for look in self._looks:
                look()


def _look(served: ServedModel, metrics: Metrics, most_waiting: int) -> Callable[[], None]:
    """Prepare the metrics of a model, so that each is there from the beginning; returns what looks at it."""
    name = served.name
    writes = served.task == "text-generation"
    metrics.calls(name)
    (metrics.answers if writes else metrics.batches)(name)
    metrics.most_waiting.labels(name).set(most_waiting)
    metrics.model_info.labels(
        name, served.task, served.model.variant.name, served.model.providers[0], onnxpress.__version__
    ).set(1)
    waiting, running = metrics.waiting.labels(name), metrics.running.labels(name)
    generator = _look_at_engine(name, served.generator.engine, metrics) if writes else None

    def look() -> None:
        state = served.runner.state
        waiting.set(state.waiting)
        running.set(state.running)
        if generator is not None:
            assert isinstance(state, EngineState)
            generator(state)

    return look


def _look_at_engine(name: str, engine: Engine, metrics: Metrics) -> Callable[[EngineState], None]:
    rows = {state: metrics.cache_rows.labels(name, state) for state in ("taken", "kept", "free")}
    size = metrics.cache_bytes.labels(name)
    counters = {
        "steps": metrics.decoding_steps.labels(name),
        "new_tokens": metrics.chosen_tokens.labels(name),
        "accepted_tokens": metrics.drafted_tokens.labels(name, "accepted"),
        "rejected_tokens": metrics.drafted_tokens.labels(name, "rejected"),
    }
    last = _counts(engine.state.counts)  # what was before, such as warming up, is no request's

    def look(state: EngineState) -> None:
        rows["taken"].set(state.taken_rows)
        rows["kept"].set(state.kept_rows)
        rows["free"].set(max(0, state.rows - state.taken_rows - state.kept_rows))
        size.set(state.cache_bytes)
        now = _counts(state.counts)
        for key, counter in counters.items():
            counter.inc(max(0, now[key] - last[key]))
        last.update(now)

    return look


def _counts(counts: Counts) -> dict[str, int]:
    return {
        "steps": counts.steps,
        "new_tokens": counts.new_tokens,
        "accepted_tokens": counts.accepted_tokens,
        "rejected_tokens": counts.drafted_tokens - counts.accepted_tokens,
    }
