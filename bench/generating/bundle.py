"""A variant of a bundle, as a service uses it: `onnxpress.load(...).generate(...)`, with the engine under it.

Any other question than one about a batch is for prompts of mixed lengths: the decoding rate of 16 of them together, the
rate of all work when more requests than rows come and go, and how many answers differ from those a request gets alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from bench.generating.timing import Generate, Prompt, random_prompt, serve

_ROWS = 16
_REQUESTS = 48
_SHORTEST, _LONGEST = 16, 240  # tokens of prompts, 128 in the mean
_FEWEST, _MOST = 32, 96  # new tokens of requests that come and go
_NEAR = 1e-4
"""Two logits closer than this, as a share of the largest, are a tie that rounding may decide."""


def load(options: dict[str, Any]) -> Generate:
    """`folder`: the bundle; `variant`: its name."""
    import onnxpress

    model = onnxpress.load(
        options["folder"], variant=options["variant"], threads=options["threads"], task="text-generation"
    )

    def generate(prompts: Sequence[Prompt], new: int) -> list[list[int]]:
        answers = model.generate(list(prompts), max_new_tokens=new, temperature=0, ignore_eos=True)
        return [list(answer.token_ids) for answer in answers]

    generate.model = model  # type: ignore[attr-defined]  # for the figures below
    return generate


def mixed(generate: Generate, options: dict[str, Any]) -> dict[str, Any]:
    """Figures for prompts of mixed lengths. `options["mixed"]`: which ones; `come_and_go`: also when they do."""
    rng = random.Random(options["mixed"])

    def prompts(lengths: Sequence[int]) -> list[Prompt]:
        return [random_prompt(rng, length, options["vocabulary"]) for length in rng.sample(lengths, len(lengths))]

    new = options["new_tokens"]
    lengths = [_SHORTEST + (_LONGEST - _SHORTEST) * row // (_ROWS - 1) for row in range(_ROWS)]
    generate(prompts(lengths), new)  # the cache grows
    seconds, answers, asked = {}, [], []
    for count in (1, new):
        asked = prompts(lengths)
        start = time.perf_counter()
        answers = generate(asked, count)
        seconds[count] = time.perf_counter() - start
    model = generate.model  # type: ignore[attr-defined]
    differing = [
        row
        for row, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
        if not _same(model, prompt, answer, generate([prompt], new)[0])
    ]
    found = {"mixed_decode": _ROWS * (new - 1) / (seconds[new] - seconds[1]), "mixed_differing": len(differing)}
    if options.get("come_and_go"):
        found |= _come_and_go(model, rng, prompts(lengths * (_REQUESTS // _ROWS)))
    return found


def _come_and_go(model: Any, rng: random.Random, asked: list[Prompt]) -> dict[str, float]:
    """New tokens per second, prompts included, of requests that are all there at once and of the same one by one."""
    wanted = [rng.randint(_FEWEST, _MOST) for _ in asked]
    rates = {}
    for name, size in (("together", len(asked)), ("alone", 1)):
        part = list(zip(asked, wanted, strict=True))[: len(asked) if size > 1 else _ROWS]
        model.close()  # empties the cache, so that no prompt is found there
        start = time.perf_counter()
        for begin in range(0, len(part), size):
            streams = [
                model.open_stream(prompt, max_new_tokens=new, temperature=0, ignore_eos=True)
                for prompt, new in part[begin : begin + size]
            ]
            for stream in streams:
                stream.result()
        rates[f"mixed_{name}"] = sum(new for _, new in part) / (time.perf_counter() - start)
    return rates


def _same(model: Any, prompt: Prompt, one: list[int], other: list[int]) -> bool:
    """Whether two answers are the same up to the first near tie."""
    place = next((index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None)
    if place is None:
        return True
    from onnxpress.runtime.generation.replay import Replay

    replay = Replay(model.engine.decoder.session, model.settings.generation)
    logits = next(replay.steps([prompt + one[:place]], [[]]))[0].copy()
    gap = abs(float(logits[one[place]] - logits[other[place]]))
    return gap < _NEAR * float(abs(logits).max())


if __name__ == "__main__":
    serve(load, mixed)
