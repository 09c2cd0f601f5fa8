"""Worker processes that share their weights: memory of four against that of one, and the rate of each.

`python -m bench.workers [--folder DIR] [--variants fp32 int8 int4] [--bundle BUNDLE] [--require]` makes the Llama of
135 million parameters of bench/generate.py with random weights, or takes a bundle of yours, a decoder or an encoder.
Every worker is a process with one thread, pinned to one core (worker i to core i modulo the cores), and an equal budget
for keys and values, which is full before memory is read. Their cache folder is a new one.

Memory is the proportional set size (proc(5), smaps_rollup): a page that n processes map counts 1/n in each, so that the
sum over workers is what they take together. One worker is measured while no other is there.

Required, for FP32: four workers together take less than 1.6 of one, and each decodes at 0.95 of one worker with weights
of its own that runs alone on the same core. The two are measured one after the other while all else is idle; the median
over the rounds counts. This is what sharing costs. Cores also have memory bandwidth and the last cache in common,
whoever owns the weights, and a step of one request reads all of them. What that costs is seen with as many workers at
work as there are cores: it is printed against one alone, and required at 0.95 of as many with weights of their own.
More workers than cores cannot run at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import common
from bench.generating import models

WORKERS = 4
MOST_MEMORY = 1.6
LEAST_RATE = 0.95
_MODULE = "bench.generating.pinned"
_PROMPT_TOKENS = 128
_NEW_TOKENS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.workers", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the model is made, and kept for another time")
    parser.add_argument("--bundle", type=common.existing_folder, help="measure this one instead")
    parser.add_argument("--variants", nargs="+", default=["fp32"], metavar="NAME")
    parser.add_argument("--cache-mb", type=int, default=32, help="of keys and values of each worker (default: 32)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of work for each figure (default: 2)")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        if options.cache_mb < 1 or options.rounds < 1 or options.seconds <= 0:
            raise common.BadInputError("--cache-mb and --rounds must be at least 1, --seconds more than 0")
        with tempfile.TemporaryDirectory() as scratch:
            return run(options, options.folder.resolve() if options.folder else Path(scratch), Path(scratch))
    except common.BadInputError as error:
        print(f"bench.workers: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace, folder: Path, scratch: Path) -> int:
    """Bundle, workers, result."""
    facts = common.record()
    common.show_record(facts)
    if options.bundle is None:
        folder.mkdir(parents=True, exist_ok=True)
        models.make_model(folder / "model")
        models.make_bundle(folder / "model", folder / "bundle")
    bundle = options.bundle or folder / "bundle"
    environment = {**common.environment_for(1), "ONNXPRESS_CACHE": str(scratch / "cache")}
    figures, limits = {}, []
    for variant in options.variants:
        found = figures[variant] = measure(options, bundle, variant, environment)
        show(variant, found)
        if variant == "fp32" and options.bundle is None:
            limits += [
                common.Limit(f"{WORKERS} workers' memory / one", found["memory_ratio"], MOST_MEMORY),
                common.Limit("slowest of them / one alone", min(found["alone"]), LEAST_RATE, at_least=True),
                common.Limit(
                    "at once / at once with own weights", min(found["at_once_own"]), LEAST_RATE, at_least=True
                ),
            ]
    result = {"benchmark": "workers", "bundle": str(bundle), "variants": figures, "machine": facts}
    return common.finish(result, limits, options.require)


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What all workers of a comparison have in common."""

    options: dict[str, Any]
    environment: dict[str, str]
    cores: tuple[int, ...]
    seconds: float

    @contextlib.contextmanager
    def workers(self, count: int, *, share: bool) -> Iterator[list[common.Worker]]:
        """`count` of them, pinned to the cores in turn; they are warm when the block begins."""

        def start(index: int) -> common.Worker:
            core = self.cores[index % len(self.cores)]
            options = {**self.options, "share": share, "core": core, "seed": index}
            return common.Worker(_MODULE, options, self.environment)

        with ThreadPoolExecutor(count) as pool:
            made = list(pool.map(start, range(count)))
        try:
            yield made
        finally:
            for worker in made:
                worker.close()

    def rates(self, workers: Sequence[common.Worker]) -> list[float]:
        """Per second, of workers that all work at once."""
        with ThreadPoolExecutor(len(workers)) as pool:
            return [answer["rate"] for answer in pool.map(lambda worker: worker.ask({"rate": self.seconds}), workers)]


def measure(options: argparse.Namespace, bundle: Path, variant: str, environment: dict[str, str]) -> dict[str, Any]:
    """Figures of a variant: memory in bytes, rates per second, ratios by worker."""
    given = {
        "folder": str(bundle),
        "variant": variant,
        "cache_bytes": options.cache_mb * 2**20,
        "prompt_tokens": _PROMPT_TOKENS,
        "new_tokens": _NEW_TOKENS,
    }
    setup = _Setup(given, environment, tuple(sorted(os.sched_getaffinity(0))), options.seconds)
    found: dict[str, Any] = {}
    with setup.workers(1, share=True):
        pass  # makes the copy that the others map
    for name, share in (("one_own", False), ("one_shared", True)):
        with setup.workers(1, share=share) as (one,):
            found[name] = one.ask({"memory": True, "prefill": True, "rate": options.seconds})
    with setup.workers(WORKERS, share=True) as four:
        setup.rates(four)
        found["four"] = [worker.ask({"memory": True}) for worker in four]
        found["memory_ratio"] = sum(entry["pss"] for entry in found["four"]) / found["one_shared"]["pss"]
        # Started after memory was read, and idle until asked.
        with setup.workers(WORKERS, share=False) as own:
            found["four_own"] = [worker.ask({"memory": True}) for worker in own]
            rates = _rates(setup, four, own, options.rounds)
    found["rates"] = rates
    found["alone"] = _ratios(rates["four"], rates["own"])
    found["at_once"] = _ratios(rates["four_at_once"], rates["own"])
    found["own_at_once"] = _ratios(rates["own_at_once"], rates["own"])
    found["at_once_own"] = _ratios(rates["four_at_once"], rates["own_at_once"])
    return found


def _rates(
    setup: _Setup, four: Sequence[common.Worker], own: Sequence[common.Worker], rounds: int
) -> dict[str, list[list[float]]]:
    """Of each round, the rates of the four in order and, with weights of its own, of the worker on the same core; one
    after the other, and with all cores at work. Neighbours are compared: what the machine does meanwhile meets both."""
    names = ("own", "four", "own_at_once", "four_at_once")
    rates: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(rounds):
        row: dict[str, list[float]] = {name: [] for name in names}
        for index in range(WORKERS):
            row["own"] += setup.rates([own[index]])
            row["four"] += setup.rates([four[index]])
        for begin in range(0, WORKERS, len(setup.cores)):
            group = slice(begin, begin + len(setup.cores))
            row["own_at_once"] += setup.rates(own[group])
            row["four_at_once"] += setup.rates(four[group])
        for name in names:
            rates[name].append(row[name])
    return rates


def _ratios(rates: list[list[float]], against: list[list[float]]) -> list[float]:
    """Of each worker, the median over the rounds."""
    return [
        statistics.median(one[index] / other[index] for one, other in zip(rates, against, strict=True))
        for index in range(WORKERS)
    ]


def show(variant: str, found: dict[str, Any]) -> None:
    """What was found of a variant."""
    print(f"\n{variant}: memory in MB (PSS, of that private), rate per second, prompt tokens per second")
    for name, label in (("one_own", "one, weights of its own"), ("one_shared", "one, weights to share")):
        entry = found[name]
        print(f"  {label:<28}{_memory(entry)}{entry['rate']:10.1f}{entry['prefill']:10.0f}")
    for index, entry in enumerate(found["four"]):
        print(f"  worker {index + 1} of {WORKERS:<18}{_memory(entry)}{_median(found['rates']['four'], index):10.1f}")
    for name, label in (("four", "together"), ("four_own", f"{WORKERS}, weights of their own")):
        total = {key: sum(entry[key] for entry in found[name]) for key in ("pss", "anonymous")}
        print(f"  {label:<28}{_memory(total)}   {total['pss'] / found['one_shared']['pss']:.2f} of one")
    for key, label in (
        ("alone", "each while the others are idle / one alone with weights of its own"),
        ("at_once", "as many at once as there are cores / one alone with weights of its own"),
        ("own_at_once", "the same with weights of their own / one alone"),
        ("at_once_own", "as many at once as there are cores / as many with weights of their own"),
    ):
        print(f"  {' '.join(f'{ratio:.2f}' for ratio in found[key])}  {label}")


def _memory(entry: dict[str, int]) -> str:
    return f"{entry['pss'] / 1e6:8.0f}{entry['anonymous'] / 1e6:8.0f}"


def _median(rates: list[list[float]], index: int) -> float:
    return statistics.median(row[index] for row in rates)


if __name__ == "__main__":
    sys.exit(main())
