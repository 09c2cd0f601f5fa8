"""One contender of bench/batching.py, in a process of its own: load, warm up, serve all texts once, print JSON.

`python -m bench.batched '{"contender": "threads", "folder": ..., "variant": "int8", "threads": 2, "callers": 64,
"texts_file": ...}'`. Contenders: `offline`, `threads`, `tasks`, `loop`, `latency`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxpress
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.tasks import Embedder

_LOOP_SHARE = 4  # one call at a time is slow: every fourth text will do
_LATENCY_CALLS = 300


def by_threads(runner: BatchingRunner, texts: list[str], callers: int) -> None:
    """Threads that each take the next text when they have the answer to their last."""
    waiting = iter(texts)
    lock = threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                text = next(waiting, None)
            if text is None:
                return
            runner.embed(text)

    threads = [threading.Thread(target=serve) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_tasks(runner: BatchingRunner, texts: list[str], callers: int) -> None:
    """The same with tasks of one event loop."""
    waiting = iter(texts)

    async def serve() -> None:
        for text in waiting:
            await runner.asynchronous.embed(text)

    async def serve_all() -> None:
        await asyncio.gather(*(serve() for _ in range(callers)))

    asyncio.run(serve_all())


def timed(serve: Callable[[list[str]], Any], texts: list[str]) -> dict[str, Any]:
    """Seconds for all texts after a third of them as a warm-up, and the processor's own seconds."""
    serve(texts[::3])
    start, cpu = time.perf_counter(), time.process_time()
    serve(texts)
    return {
        "texts": len(texts),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def latency(model: Embedder, runner: BatchingRunner, texts: list[str]) -> dict[str, Any]:
    """Medians of single calls, with and without a runner in turn, so that both see the same machine."""
    seconds: dict[str, list[float]] = {"direct": [], "runner": []}
    calls = {"direct": model.embed, "runner": runner.embed}
    for index in range(_LATENCY_CALLS + 20):
        text = texts[index % len(texts)]
        for name in sorted(calls, reverse=bool(index % 2)):
            start = time.perf_counter()
            calls[name](text)
            if index >= 20:
                seconds[name].append(time.perf_counter() - start)
    return {f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Do what the command line asks."""
    options = json.loads(sys.argv[1])
    texts = json.loads(Path(options["texts_file"]).read_text(encoding="utf-8"))
    model = onnxpress.load(
        options["folder"],
        variant=options["variant"],
        threads=options["threads"],
        settings=options.get("settings"),
        task="feature-extraction",
    )
    runner = BatchingRunner(model)
    contender, callers = options["contender"], options["callers"]
    if contender == "latency":
        print(json.dumps(latency(model, runner, texts)))
        return
    serve: dict[str, Callable[[list[str]], Any]] = {
        "offline": model.embed,
        "threads": lambda some: by_threads(runner, some, callers),
        "tasks": lambda some: by_tasks(runner, some, callers),
        "loop": lambda some: [model.embed(text) for text in some],
    }
    if contender == "loop":
        texts = texts[::_LOOP_SHARE]
    answer = timed(serve[contender], texts)
    print(json.dumps({**answer, "counts": dataclasses.asdict(runner.state)}))


if __name__ == "__main__":
    main()
