"""Processes that measure one model each, driven in turn by `measuring.py` through lines of JSON.

`serve` is what such a process runs: it answers on the stdout it was started with, everything else goes to stderr.
Run as `python -m onnxpress.runtime.workers BUNDLE VARIANT THREADS [SETTINGS]`, it measures a bundle's variant; settings
are JSON with the fields of `ServingSettings`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnxpress.runtime.machine import peak_memory_bytes

if TYPE_CHECKING:
    from onnxpress.runtime.generation.timing import Writes
    from onnxpress.runtime.tasks import TaskModel
    from onnxpress.runtime.workload import Work

_FIRST_TEXT = "The first text a new process answers."


Answer = Callable[[dict[str, Any]], Any]


def serve(load: Callable[[], TaskModel | Writes]) -> None:
    """Load a model, then answer commands until stdin ends.

    Commands, one JSON object a line: {"do": "memory"} -> peak bytes; of decoders those of `_writing`, of all other
    models those of `_reading`.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    model = load()
    from onnxpress.runtime.tasks import TaskModel

    answer = _reading(model) if isinstance(model, TaskModel) else _writing(model)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        found = peak_memory_bytes() if command["do"] == "memory" else answer(command)
        print(json.dumps({"answer": found}), file=answers)


def _reading(model: TaskModel) -> Answer:
    """{"do": "latency", "text", "seconds"} -> seconds of each call; {"do": "throughput", "texts", "batch", "seconds"}
    -> texts per second. A text is one unit of the model's work (workload.py)."""
    from onnxpress.runtime.workload import work_of

    work = work_of(model)
    work([_FIRST_TEXT])

    def answer(command: dict[str, Any]) -> Any:
        if command["do"] == "latency":
            return _latency(work, command["text"], command["seconds"])
        return _throughput(work, command["texts"], command["batch"], command["seconds"])

    return answer


def _writing(model: Writes) -> Answer:
    """{"do": "first_token", "prompts", "seconds"} -> seconds of each call; {"do": "decoding", "prompts", "batch",
    "new_tokens", "seconds"} -> new tokens per second (generation/timing.py)."""
    from onnxpress.runtime.generation.timing import Timing

    timing = Timing(model)
    timing.write([_FIRST_TEXT], 1)

    def answer(command: dict[str, Any]) -> Any:
        if command["do"] == "first_token":
            return timing.first_token(command["prompts"], command["seconds"])
        return timing.decoding(command["prompts"], command["batch"], command["new_tokens"], command["seconds"])

    return answer


def _latency(work: Work, text: str, seconds: float) -> list[float]:
    for _ in range(3):
        work([text])
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        work([text])
        times.append(time.perf_counter() - start)
    return times


def _throughput(work: Work, texts: Sequence[str], batch: int, seconds: float) -> float:
    """Texts per second over whole passes, so that every model has done the same mixture of lengths."""
    chunks = [list(texts[start : start + batch]) for start in range(0, len(texts), batch)]
    work(chunks[0])
    passes = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or passes == 0:
        for chunk in chunks:
            work(chunk)
        passes += 1
    return passes * len(texts) / elapsed


def main() -> None:
    """Measure the variant named on the command line."""
    folder, variant, threads, *more = sys.argv[1:]

    def load_variant() -> TaskModel | Writes:
        from onnxpress.runtime.decoding import decode
        from onnxpress.runtime.model import load
        from onnxpress.runtime.settings import ServingSettings, settings_of

        # Never what `onnxpress tune` kept: figures of variants, and of other settings, are compared with the default's.
        settings = decode(ServingSettings, json.loads(more[0])) if more else settings_of(None)
        model: TaskModel | Writes = load(folder, variant=variant, threads=int(threads), settings=settings)
        return model

    serve(load_variant)


if __name__ == "__main__":
    main()
