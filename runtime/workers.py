"""Processes that measure one model each, driven in turn by `measuring.py` through lines of JSON.

`serve` is what such a process runs: it answers on the stdout it was started with, everything else goes to stderr.
Run as `python -m onnxpress.runtime.workers BUNDLE VARIANT THREADS`, it measures a bundle's variant.
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
    from onnxpress.runtime.tasks import TaskModel
    from onnxpress.runtime.workload import Work, Writes


def serve(load: Callable[[], TaskModel | Writes]) -> None:
    """Load a model, then answer commands until stdin ends. A text is one unit of the model's work (workload.py).

    Commands, one JSON object a line: {"do": "latency", "text", "seconds"} -> seconds of each call;
    {"do": "throughput", "texts", "batch", "seconds"} -> texts per second; {"do": "memory"} -> peak bytes.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    model = load()
    from onnxpress.runtime.workload import work_of

    work = work_of(model)
    work(["The first text a new process answers."])
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "latency":
            answer: Any = _latency(work, command["text"], command["seconds"])
        elif command["do"] == "throughput":
            answer = _throughput(work, command["texts"], command["batch"], command["seconds"])
        else:
            answer = peak_memory_bytes()
        print(json.dumps({"answer": answer}), file=answers)


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
    folder, variant, threads = sys.argv[1:4]

    def load_variant() -> TaskModel:
        from onnxpress.runtime.model import load

        model: TaskModel = load(folder, variant=variant, threads=int(threads))
        return model

    serve(load_variant)


if __name__ == "__main__":
    main()
