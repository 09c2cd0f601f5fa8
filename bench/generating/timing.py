"""What every measured process does: start an engine, warm it up, time prompts and answers, print JSON.

`python -m bench.generating.ENGINE '{"folder": ..., "threads": 2, "batches": [1, 4, 16], ...}'`. An engine is timed as a
function from prompts to answers. T(1), the time to one new token, is that of the prompt; T(n) - T(1) that of n - 1
decoding steps. Of two tries, each with prompts of its own, the faster counts.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Prompt = list[int]
Generate = Callable[[Sequence[Prompt], int], list[list[int]]]
"""Prompts and a number of new tokens to the new tokens of each, greedily, whatever they are."""

_TRIES = 2


def serve(load: Callable[[dict[str, Any]], Generate], more: Callable[[Generate, dict[str, Any]], Any] = dict) -> None:
    """Do what the command line asks.

    Args:
        load: makes the engine from the options.
        more: further figures, from the engine and the options.
    """
    options = json.loads(sys.argv[1])
    start = time.perf_counter()
    generate = load(options)
    figures: dict[str, Any] = {"load_seconds": time.perf_counter() - start}
    rng = random.Random(options["seed"])
    for batch in options["batches"]:
        generate(_prompts(rng, batch, options), 4)
        figures[f"batch_{batch}"] = time_batch(generate, rng, batch, options)
        if batch == options["batches"][0]:
            figures["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures |= more(generate, options) if more is not dict else {}
    print(json.dumps(figures))


def time_batch(generate: Generate, rng: random.Random, batch: int, options: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of all rows together: `prefill` and `decode`; `first_seconds` to the first token."""
    new = options["new_tokens"]
    first = min(_seconds(generate, _prompts(rng, batch, options), 1) for _ in range(_TRIES))
    whole = min(_seconds(generate, _prompts(rng, batch, options), new) for _ in range(_TRIES))
    return {
        "prefill": batch * options["prompt_tokens"] / first,
        "decode": batch * (new - 1) / (whole - first),
        "first_seconds": first,
    }


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
