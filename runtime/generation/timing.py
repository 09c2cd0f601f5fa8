"""How fast a decoder writes: time to the first token, prompt tokens a second, new tokens a second alone and together.

Two halves: what a measuring process does with its model (runtime/workers.py), and what it is asked to do in turn with
others (runtime/measuring.py). Works on anything with `generate`, so the reference is timed the same way. No prompt is
run twice in a row: what an engine keeps of a prompt would make the next run of it shorter.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from onnxpress.runtime.measuring import Asks, Figures, Plan

POOL = 64
"""Prompts of a length to take turns with; more than an engine keeps rows of."""
BATCHES = (1, 16)
"""Requests that are answered at once."""
_LEAST_SAMPLES = 3


class Writes(Protocol):
    """A model that continues texts, greedily at temperature 0."""

    def generate(self, prompts: list[str], /, **options: Any) -> Any:
        """An answer to each prompt."""


class Timing:
    """Times one model, in a process of its own."""

    def __init__(self, model: Writes) -> None:
        self._model = model
        self._turns: dict[tuple[str, ...], Iterator[str]] = {}

    def write(self, prompts: list[str], new_tokens: int) -> float:
        """Seconds for `new_tokens` tokens after each prompt."""
        start = time.perf_counter()
        self._model.generate(prompts, max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        return time.perf_counter() - start

    def first_token(self, prompts: Sequence[str], seconds: float) -> list[float]:
        """Seconds from a prompt to its first token, again and again for about so long."""
        self.write(self._next(prompts, 1), 1)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < _LEAST_SAMPLES:
            times.append(self.write(self._next(prompts, 1), 1))
        return times

    def decoding(self, prompts: Sequence[str], batch: int, new_tokens: int, seconds: float) -> float:
        """New tokens a second of `batch` requests together: what those after the first take, without the prompts."""
        first: list[float] = []
        whole: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not whole:
            first.append(self.write(self._next(prompts, batch), 1))
            whole.append(self.write(self._next(prompts, batch), new_tokens))
        steps = statistics.median(whole) - statistics.median(first)
        # A model so small that this drowns in noise is measured with its prompts.
        return batch * (new_tokens - 1) / (steps if steps > 0 else statistics.median(whole))

    def _next(self, prompts: Sequence[str], count: int) -> list[str]:
        turns = self._turns.setdefault(tuple(prompts), itertools.cycle(prompts))
        return list(itertools.islice(turns, count))


@dataclasses.dataclass(frozen=True)
class WritingWorkload:
    """What every decoder is timed on."""

    prompts: Mapping[int, Sequence[str]]
    """POOL prompts that begin differently, for each number of tokens."""
    decoded_after: int
    """Tokens of the prompts after which decoding is timed; one of the numbers above."""
    new_tokens: int

    def measure(self, workers: Mapping[str, Asks], plan: Plan, progress: Callable[[str, float], None]) -> Figures:
        """Figures of each model: `latency` to the first token, `throughput` of decoding."""
        from onnxpress.runtime.measuring import latency_row

        times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in self.prompts} for name in workers}
        rates: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in workers}
        steps, done = plan.rounds * (len(self.prompts) + len(BATCHES)) * len(workers), 0
        for _ in range(plan.rounds):
            for size, prompts in self.prompts.items():
                for name, worker in workers.items():
                    progress(f"{name}, a prompt of {size} tokens", done / steps)
                    times[name][size] += worker.ask(
                        do="first_token", prompts=list(prompts), seconds=plan.latency_seconds
                    )
                    done += 1
            prompts = list(self.prompts[self.decoded_after])
            for batch in BATCHES:
                for name, worker in workers.items():
                    progress(f"{name}, writing {batch} at once", done / steps)
                    rate = worker.ask(
                        do="decoding",
                        prompts=prompts,
                        batch=batch,
                        new_tokens=self.new_tokens,
                        seconds=plan.throughput_seconds,
                    )
                    rates[name][batch].append(rate)
                    done += 1
        return {
            name: {
                "latency": [
                    latency_row(size, found) | {"tokens_per_second": size / statistics.median(found)}
                    for size, found in times[name].items()
                ],
                "throughput": [
                    {"batch": batch, "tokens_per_second": statistics.median(found)}
                    for batch, found in rates[name].items()
                ],
            }
            for name in workers
        }
