"""What every measured process does: start an engine, then time prompts and answers whenever it is asked.

`python -m bench.generating.ENGINE '{"folder": ..., "threads": 2, "prompt_tokens": 128, "new_tokens": 64, ...}'` reads
a JSON object a line, such as `{"batch": 4}`, and answers with a line. An engine is timed as a function from prompts to
answers. T(1), the time to one new token, is that of the prompt; T(n) - T(1) that of n - 1 decoding steps.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Prompt = list[int]
Generate = Callable[[Sequence[Prompt], int], list[list[int]]]
"""Prompts and a number of new tokens to the new tokens of each, greedily, whatever they are."""


def serve(
    load: Callable[[dict[str, Any]], Generate],
    more: Callable[[Generate, dict[str, Any]], dict[str, Any]] = lambda generate, options: {},
) -> None:
    """Answer until there are no more questions.

    Args:
        load: makes the engine from the options.
        more: answers what is not about a batch, from the engine, and the options with the question.
    """
    options = json.loads(sys.argv[1])
    generate = load(options)
    rng = random.Random(options["seed"])
    warm: set[int] = set()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "batch" in question:
            batch = question["batch"]
            if batch not in warm:
                warm.add(batch)
                for new in (1, options["new_tokens"]):  # caches grow to what the timed answers need
                    generate(_prompts(rng, batch, options), new)
            answer = time_batch(generate, rng, batch, options)
        else:
            answer = more(generate, options | question)
        print(json.dumps(answer), flush=True)


def time_batch(generate: Generate, rng: random.Random, batch: int, options: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of all rows together: `prefill` and `decode`; `first_seconds` to the first token; `peak_mb`."""
    new = options["new_tokens"]
    first = _seconds(generate, _prompts(rng, batch, options), 1)
    whole = _seconds(generate, _prompts(rng, batch, options), new)
    return {
        "prefill": batch * options["prompt_tokens"] / first,
        "decode": batch * (new - 1) / (whole - first),
        "first_seconds": first,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    """In 1e6 bytes. As `onnxpress.runtime.machine` reads it, which rivals' interpreters need not have."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM:"))


def _seconds(generate: Generate, prompts: Sequence[Prompt], new: int) -> float:
    start = time.perf_counter()
    answers = generate(prompts, new)
    seconds = time.perf_counter() - start
    assert [len(answer) for answer in answers] == [new] * len(prompts), "an answer is too short"
    return seconds


def _prompts(rng: random.Random, count: int, options: dict[str, Any]) -> list[Prompt]:
    """Random tokens, so that no prompt begins like an earlier one."""
    return [random_prompt(rng, options["prompt_tokens"], options["vocabulary"]) for _ in range(count)]


def random_prompt(rng: random.Random, tokens: int, vocabulary: int) -> Prompt:
    """Token ids; the first few, which are often special, are left out."""
    return [rng.randrange(10, vocabulary) for _ in range(tokens)]
