"""A worker process of a service, pinned to one core: `python -m bench.generating.pinned '{"folder": ..., ...}'`.

Options: `folder` and `variant` of a bundle, `core`, `share` (weights with other workers or not), `cache_bytes` of keys
and values, `prompt_tokens` and `new_tokens` of a timed answer, `seed`. Reads a JSON object a line: `{"rate": seconds}`
works for about so long and answers with tokens per second decoded, or for an encoder with texts per second;
`{"prefill": true}` answers with tokens per second of a prompt; `{"memory": true}` with the process's memory in bytes
(proc(5), smaps_rollup).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.generating.timing import random_prompt

if TYPE_CHECKING:
    from onnxpress.runtime.bundle import Bundle
    from onnxpress.runtime.settings import ServingSettings

Rates = tuple[Callable[[float], float], Callable[[], float]]
"""Of answers over some seconds, and of a prompt."""

_FIRST_ORDINARY = 1000  # of an encoder's vocabulary
_TEXT_WORDS = 32
_TEXTS = 8


def main() -> None:
    """Load, warm up, answer until there are no more questions."""
    options = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {options["core"]})
    rate, prefill = load(options)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any] = {}
        if "rate" in question:
            answer["rate"] = rate(question["rate"])
        if "prefill" in question:
            answer["prefill"] = prefill()
        if "memory" in question:
            answer |= memory()
        print(json.dumps(answer), flush=True)


def load(options: dict[str, Any]) -> Rates:
    """Open the variant and warm it up."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.settings import ServingSettings

    settings = ServingSettings(threads=1, share_weights=options["share"])
    bundle = open_bundle(options["folder"])
    if bundle.manifest.task == "text-generation":
        return _decoder(bundle, settings, options)
    return _encoder(settings, options)


def _decoder(bundle: Bundle, settings: ServingSettings, options: dict[str, Any]) -> Rates:
    from onnxpress.runtime.generation.generator import Generator
    from onnxpress.runtime.providers import ON_CPU

    model = Generator.open(
        bundle,
        bundle.manifest.variant(options["variant"]),
        ON_CPU,
        settings,
        cache_bytes=options["cache_bytes"],
    )
    rng = random.Random(options["seed"])
    generation = bundle.manifest.settings.generation
    assert generation is not None

    def seconds(prompt_tokens: int, new: int) -> float:
        prompt = random_prompt(rng, prompt_tokens, generation.vocabulary)
        start = time.perf_counter()
        answer = model.generate([prompt], max_new_tokens=new, temperature=0, ignore_eos=True)[0]
        assert len(answer.token_ids) == new
        return time.perf_counter() - start

    def rate(wanted: float) -> float:
        # A prompt of one token costs a step as each new token does.
        steps, begin = 0, time.perf_counter()
        while not steps or time.perf_counter() < begin + wanted:
            seconds(1, options["new_tokens"])
            steps += options["new_tokens"]
        return steps / (time.perf_counter() - begin)

    def prefill() -> float:
        return float(options["prompt_tokens"] / seconds(options["prompt_tokens"], 1))

    layout = model.engine.decoder.cache.layout
    for _ in range(options["cache_bytes"] // (layout.token_bytes * options["prompt_tokens"]) + 1):
        prefill()  # until the cache is full, as it is in a service
    rate(0)
    return rate, prefill


def _encoder(settings: ServingSettings, options: dict[str, Any]) -> Rates:
    import onnxpress
    from onnxpress.runtime.workload import work_of

    model = onnxpress.load(options["folder"], options["variant"], settings=settings)
    work = work_of(model)
    rng = random.Random(options["seed"])
    vocabulary = json.loads((Path(options["folder"]) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()][_FIRST_ORDINARY:]

    def rate(wanted: float) -> float:
        done, begin = 0, time.perf_counter()
        while not done or time.perf_counter() < begin + wanted:
            work([" ".join(rng.choices(words, k=_TEXT_WORDS)) for _ in range(_TEXTS)])
            done += _TEXTS
        return done / (time.perf_counter() - begin)

    rate(1)
    return rate, lambda: 0.0  # an encoder has no prompt apart


def memory() -> dict[str, int]:
    """Bytes: `pss`, the proportional set size, `anonymous`, its part that is no file's, and `rss`."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return {"pss": found["Pss"], "anonymous": found["Pss_Anon"], "rss": found["Rss"]}


if __name__ == "__main__":
    main()
