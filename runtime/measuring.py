"""Latency, throughput, memory and cold start of several models, each in its own process, in turn, with equal threads.

One process a model, all started before anything is timed and idle while another is timed: every model sees the machine
in the same state (A B C, A B C, ...). A session's threads spin for a while after a run; the next one waits that out.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from onnxpress.runtime.errors import InvalidInputError, OnnxpressError
from onnxpress.runtime.paths import user_cache

P99_SAMPLES = 1000
"""Fewer samples say nothing about the slowest hundredth."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int
    latency_seconds: float
    """Time for each model, length and round."""
    throughput_seconds: float
    batches: tuple[int, ...]
    cold_starts: int


QUICK = Plan(rounds=2, latency_seconds=0.4, throughput_seconds=0.5, batches=(1, 8, 32, 256), cold_starts=1)
FULL = Plan(rounds=5, latency_seconds=4.0, throughput_seconds=4.0, batches=(1, 8, 32, 256), cold_starts=3)


_SPINNING_SECONDS = 0.1
"""Threads of onnxruntime 1.32 were seen to slow other processes for 0.05 s after a run."""

Figures = dict[str, dict[str, list[dict[str, Any]]]]
"""Of each model: `latency` and `throughput`, as in report.json (docs/bundle.md)."""


class Asks(Protocol):
    """A measuring process."""

    def ask(self, **command: Any) -> Any:
        """Its answer to a command."""


class Timed(Protocol):
    """What models are timed on."""

    def measure(self, workers: Mapping[str, Asks], plan: Plan, progress: Callable[[str, float], None]) -> Figures:
        """Time them in turn; `progress` hears of what is being done and the fraction done."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every model is timed on."""

    short: Mapping[int, str]
    """A text for each number of tokens whose latency is measured."""
    mixed: Sequence[str]
    """Texts of mixed lengths, in mixed order, for throughput."""

    def measure(self, workers: Mapping[str, Asks], plan: Plan, progress: Callable[[str, float], None]) -> Figures:
        """Figures of each model."""
        latencies: dict[str, dict[int, list[float]]] = {name: {size: [] for size in self.short} for name in workers}
        rates: dict[str, dict[int, list[float]]] = {name: {size: [] for size in plan.batches} for name in workers}
        steps = plan.rounds * (len(self.short) + len(plan.batches)) * len(workers)
        done = 0
        for _ in range(plan.rounds):
            for size, text in self.short.items():
                for name, worker in workers.items():
                    progress(f"{name}, {size} tokens", done / steps)
                    latencies[name][size] += worker.ask(do="latency", text=text, seconds=plan.latency_seconds)
                    done += 1
            for batch in plan.batches:
                # One text at a time is slow enough to need fewer texts for a whole pass.
                texts = list(self.mixed if batch > 1 else self.mixed[:32])
                for name, worker in workers.items():
                    progress(f"{name}, batches of {batch}", done / steps)
                    rates[name][batch].append(
                        worker.ask(do="throughput", texts=texts, batch=batch, seconds=plan.throughput_seconds)
                    )
                    done += 1
        return {
            name: {
                "latency": [latency_row(size, times) for size, times in latencies[name].items()],
                "throughput": [
                    {"batch": batch, "texts_per_second": statistics.median(found)}
                    for batch, found in rates[name].items()
                ],
            }
            for name in workers
        }


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Figures of one model. `latency` and `throughput` are as in report.json (docs/bundle.md)."""

    latency: list[dict[str, Any]]
    throughput: list[dict[str, Any]]
    peak_memory_bytes: int | None
    cold_start_seconds: float


class Worker:
    """A measuring process: `command` must run `workers.serve`."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """
        Raises:
            OnnxpressError: the process ended before it was ready.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        started = time.perf_counter()
        with ExitStack() as undo:
            undo.enter_context(self._errors)
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
            undo.callback(self.close)
            self._answer()
            undo.pop_all()
        self.cold_start_seconds = time.perf_counter() - started

    def ask(self, **command: Any) -> Any:
        """Send a command and wait for its answer.

        Raises:
            OnnxpressError: the process has ended.
        """
        time.sleep(_SPINNING_SECONDS)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what became of it is told where there is no answer
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer().get("answer")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # of a process that ended before it read its command
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace").strip().splitlines() or ["no output"]
            raise OnnxpressError(f"the process that measures {self.name} ended early: {text[-1][:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def measuring_alone() -> Iterator[None]:
    """While no other process of onnxpress measures: two would measure each other, so the second waits.

    Raises:
        InvalidInputError: the cache, where the lock lies, cannot be written.
    """
    try:
        user_cache().mkdir(parents=True, exist_ok=True)
        lock = (user_cache() / "measuring.lock").open("w")
    except OSError as error:
        raise InvalidInputError(
            f"{user_cache()} cannot be written: {error.strerror}; set ONNXPRESS_CACHE to a folder that can be"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def measure(
    commands: Mapping[str, Sequence[str]],
    workload: Timed,
    plan: Plan,
    progress: Callable[[str, float], None] = lambda detail, fraction: None,
) -> dict[str, Measurement]:
    """Measure models against each other.

    Args:
        commands: for each model's name, the command line of a process that runs `workers.serve`.
        workload: what they are timed on.
        plan: how much to measure.
        progress: called with what is being measured and the fraction done.

    Raises:
        InvalidInputError: as of `measuring_alone`.
    """
    with measuring_alone(), ExitStack() as stack:
        starts: dict[str, list[float]] = {name: [] for name in commands}
        workers: dict[str, Worker] = {}
        for name, command in commands.items():
            progress(f"starting {name}", 0.0)
            for attempt in range(plan.cold_starts):
                worker = Worker(name, command)
                starts[name].append(worker.cold_start_seconds)
                if attempt + 1 < plan.cold_starts:
                    worker.close()
            workers[name] = worker
            stack.callback(worker.close)
        figures = workload.measure(workers, plan, progress)
        return {
            name: Measurement(
                latency=figures[name]["latency"],
                throughput=figures[name]["throughput"],
                peak_memory_bytes=worker.ask(do="memory"),
                cold_start_seconds=statistics.median(starts[name]),
            )
            for name, worker in workers.items()
        }


def variant_command(folder: Path, variant: str, threads: int) -> list[str]:
    """Command line of a process that measures a bundle's variant."""
    return [sys.executable, "-m", "onnxpress.runtime.workers", os.fspath(folder), variant, str(threads)]


def latency_row(tokens: int, seconds: Sequence[float]) -> dict[str, Any]:
    """A row of `latency` for one text of so many tokens that took so long each time."""
    ordered = sorted(seconds)

    def percentile(share: float) -> float:
        return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)

    return {
        "tokens": tokens,
        "batch": 1,
        "samples": len(ordered),
        "p50_ms": percentile(0.50),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99) if len(ordered) >= P99_SAMPLES else None,
    }


def best_rate(throughput: Sequence[Mapping[str, Any]]) -> float | None:
    """Texts a second, of decoders new tokens a second, at the batch size that suits best; None without figures."""
    rates = [row.get("texts_per_second", row.get("tokens_per_second")) for row in throughput]
    return max((float(rate) for rate in rates if rate is not None), default=None)
