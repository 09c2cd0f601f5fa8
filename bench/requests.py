"""Thousands of random generation requests against one engine, from several threads and an event loop at once.

`python -m bench.requests BUNDLE [--requests 10000] [--seed N] [--require]`: good requests and bad ones, answered whole,
streamed, cancelled and abandoned (random_requests.py, asking.py). Each must end within a bounded time with an answer
that is right (answer_checks.py) or, where it was bad, with a sentence. Afterwards all rows are free, a sample of the
greedy answers has the tokens it has alone, memory has not grown since the second fifth of the requests, and closing
ends the engine's thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import common
from bench.asking import ask_all, close
from onnxpress.runtime.errors import OnnxpressError
from onnxpress.runtime.settings import ServingSettings

if TYPE_CHECKING:
    from bench.asking import Tally
    from onnxpress.runtime.generation.generator import Generator

MOST_GROWTH = 0.02
"""Of the resident memory, from the first fifth of the requests to the last."""
LEAST_GROWTH_BYTES = 8 * 2**20
"""What an allocator may keep more or less of in a small process."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.requests", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default: 0)")
    parser.add_argument("--variant", help="of the bundle (default: fp32 where there is one)")
    parser.add_argument("--cpu-threads", type=int, help="that onnxruntime uses (default: the cores allowed)")
    parser.add_argument(
        "--cache-rows", type=int, default=6, help="requests of the whole context that fit the cache (default: 6)"
    )
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (common.BadInputError, OnnxpressError) as error:
        print(f"bench.requests: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """All requests, and the result."""
    facts = common.record()
    common.show_record(facts)
    generator = open_generator(options.bundle, options.variant, options.cache_rows, options.cpu_threads)
    start = time.perf_counter()
    tally = ask_all(generator, options.requests, options.seed)
    seconds = time.perf_counter() - start
    close(generator, tally)
    show(tally, seconds)
    growth = tally.growth_bytes()
    allowed = max(LEAST_GROWTH_BYTES, MOST_GROWTH * tally.resident[0][1])
    limits = [
        common.Limit("requests that were not answered", options.requests - tally.asked, 0),
        common.Limit("faults", tally.faults, 0),
        common.Limit("resident memory gained, MB", None if growth is None else growth / 1e6, allowed / 1e6),
    ]
    figures = {
        "benchmark": "requests",
        "variant": generator.variant.name,
        "seed": options.seed,
        "requests": tally.asked,
        "seconds": round(seconds, 1),
        "outcomes": dict(tally.outcomes),
        **tally.tokens,
        "compared_with_alone": tally.compared,
        "resident_bytes": tally.resident[:: max(1, len(tally.resident) // 20)],
        "machine": facts,
    }
    return common.finish(figures, limits, options.require)


def open_generator(bundle: Path, variant: str | None, cache_rows: int, threads: int | None) -> Generator:
    """A variant with a cache that is too small for all that ask at once."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.generation.cache import CacheLayout
    from onnxpress.runtime.generation.generator import Generator
    from onnxpress.runtime.providers import CPU

    opened = open_bundle(bundle)
    settings = opened.manifest.generation
    if settings is None:
        raise common.BadInputError(f"{bundle} is for {opened.manifest.task}; give a bundle for text-generation")
    names = [entry.name for entry in opened.manifest.variants]
    chosen = opened.manifest.variant(variant or ("fp32" if "fp32" in names else None))
    layout = CacheLayout(settings.kv_heads, settings.head_dims)
    limit = layout.size_bytes(cache_rows, settings.context)
    threads = threads or len(os.sched_getaffinity(0))
    return Generator.open(opened, chosen, [CPU], ServingSettings(threads), cache_bytes=limit)


def show(tally: Tally, seconds: float) -> None:
    """What became of the requests, for people."""
    print(
        f"\n{tally.asked:,} requests in {seconds:.1f} s: "
        + ", ".join(f"{v:,} {k}" for k, v in tally.outcomes.most_common())
    )
    print(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in tally.tokens.items()))
    print(f"{tally.compared} greedy answers asked again alone")
    sizes = " ".join(f"{size / 1e6:.0f}" for _, size in tally.resident[:: max(1, len(tally.resident) // 20)])
    print(f"resident memory on the way, MB: {sizes}")
    for fault in tally.shown:
        print(f"  FAULT  {fault}")


if __name__ == "__main__":
    sys.exit(main())
