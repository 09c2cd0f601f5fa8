"""Memory of a served encoder: the preset `small` against the default, after a burst, and over many requests.

`python -m bench.memory BUNDLE` measures, each in a process of its own:
- peak resident memory and texts a second on texts of 4 to 256 tokens, `small` against the default settings, in turn;
  required: at most 0.6x of the peak (VmHWM), at 0.8x of the rate or more.
- resident memory before a burst of long texts, after it, and once nothing has run for a while, with an arena that
  shrinks and with one that does not; required with shrinking: at most 1.15x of the level before.
`--soak` instead sends 100,000 requests of random lengths, one text each, to the preset `small` and to the default;
required: resident memory grows by less than 5 % after the first 10,000. Takes `--requests` for fewer. On 2 cores a
soak takes about a quarter of an hour for each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench import common

MOST_PEAK, LEAST_RATE, MOST_AFTER_BURST, MOST_GROWTH = 0.6, 0.8, 1.15, 1.05
LONGEST = 256
IDLE_SECONDS = 1.0
_WORDS = "the order was sent to the old address and came back after two weeks so we called again".split()  # noqa: SIM905


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    options = make_parser().parse_args(arguments)
    try:
        return soak(options) if options.soak else run(options)
    except common.BadInputError as error:
        print(f"bench.memory: {error}", file=sys.stderr)
        return common.BAD_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.memory", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--variant", action="append", help="may be repeated (default: the bundle's default, and fp32)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each timing")
    parser.add_argument("--soak", action="store_true", help="many requests of random lengths instead")
    parser.add_argument("--requests", type=int, default=100_000, help="of a soak")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    return parser


def run(options: argparse.Namespace) -> int:
    """Peaks, bursts, result."""
    facts = common.record()
    common.show_record(facts)
    figures: dict[str, Any] = {}
    limits: list[common.Limit] = []
    for variant in _variants(options):
        peaks = {name: [] for name in ("default", "small")}  # type: dict[str, list[dict[str, Any]]]
        for _ in range(options.rounds):
            for name, found in peaks.items():
                found.append(ask(options, variant, preset=_PRESETS[name], job="peak", seconds=options.seconds))
        one = compare_peaks(peaks)
        show_peaks(variant, one)
        for label in ("never", "when_idle"):
            burst = ask(options, variant, preset="balanced", job="burst", shrink=label)
            one[f"burst_{label}"] = burst
            show_burst(variant, label, burst)
        figures[variant] = one
        shrunk = one["burst_when_idle"]
        limits += [
            common.Limit(f"{variant}, peak, small / default", one["peak_ratio"], MOST_PEAK),
            common.Limit(f"{variant}, rate small / default", one["rate_ratio"], LEAST_RATE, at_least=True),
            common.Limit(f"{variant}, after a burst", shrunk["idle_mb"] / shrunk["before_mb"], MOST_AFTER_BURST),
        ]
    return common.finish({"benchmark": "memory", "variants": figures, "machine": facts}, limits, options.require)


def show_peaks(variant: str, one: dict[str, Any]) -> None:
    """A comparison of peaks for a person."""
    default, small, imports = (one[key] for key in ("default_peak_mb", "small_peak_mb", "imports_mb"))
    print(f"\n{variant}: peak {default:.0f} MB by default, {small:.0f} MB small: {one['peak_ratio']:.2f}x; ", end="")
    print(f"Python and its libraries alone {imports:.0f} MB")
    rate, ratio = one["default_texts_per_second"], one["rate_ratio"]
    print(f"  {rate:.1f} texts/s by default, small {ratio:.2f}x of it", flush=True)


def show_burst(variant: str, shrink: str, found: dict[str, Any]) -> None:
    """A burst for a person."""
    before, after = found["before_mb"], found["after_mb"]
    print(f"{variant}: burst, shrink {shrink}: {before:.0f} MB before, {after:.0f} MB after, ", end="")
    print(f"{found['idle_mb']:.0f} MB when idle: {found['idle_mb'] / found['before_mb']:.2f}x", flush=True)


def soak(options: argparse.Namespace) -> int:
    """Many requests."""
    facts = common.record()
    common.show_record(facts)
    figures: dict[str, Any] = {}
    limits = []
    variant = _variants(options)[0]
    for name, preset in _PRESETS.items():
        found = ask(options, variant, preset=preset, job="soak", requests=options.requests)
        growth = max(found["resident_mb"][1:]) / found["resident_mb"][0]
        print(
            f"{variant}, {name}: resident MB after each tenth: {', '.join(f'{mb:.0f}' for mb in found['resident_mb'])}"
        )
        figures[name] = found | {"growth": growth}
        limits.append(common.Limit(f"{variant}, {name}: resident after the first tenth, growth", growth, MOST_GROWTH))
    record = {"benchmark": "memory soak", "requests": options.requests, **figures, "machine": facts}
    return common.finish(record, limits, options.require)


def compare_peaks(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, and ratios of them."""
    of = {
        name: {key: statistics.median(answer[key] for answer in answers) for key in answers[0]}
        for name, answers in found.items()
    }
    default, small = of["default"], of["small"]
    return {
        "imports_mb": default["imports_mb"],
        "default_peak_mb": default["peak_mb"],
        "small_peak_mb": small["peak_mb"],
        "peak_ratio": small["peak_mb"] / default["peak_mb"],
        "default_texts_per_second": default["texts_per_second"],
        "small_texts_per_second": small["texts_per_second"],
        "rate_ratio": small["texts_per_second"] / default["texts_per_second"],
    }


def ask(options: argparse.Namespace, variant: str, **job: Any) -> dict[str, Any]:
    """The answer of a measuring process."""
    request = {"folder": str(options.bundle), "variant": variant, **job}
    return common.run_json("bench.memory", request, common.offline_environment())


_PRESETS = {"default": "balanced", "small": "small"}


def _variants(options: argparse.Namespace) -> list[str]:
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.errors import OnnxpressError

    try:
        manifest = open_bundle(options.bundle).manifest
        names = options.variant or [manifest.default_variant, "fp32"]
        return [manifest.variant(name).name for name in dict.fromkeys(names)]
    except OnnxpressError as error:
        raise common.BadInputError(str(error)) from error


# --- the measuring process ---


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, do the job, answer with figures in MB (1e6 bytes)."""
    import dataclasses

    import numpy  # noqa: F401 - what every user of the runtime has in memory
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401

    import onnxpress
    from onnxpress.runtime.settings import PRESETS

    imports = resident_mb()
    settings = PRESETS[request["preset"]]
    if request["job"] == "burst":
        arena = dataclasses.replace(settings.arena, shrink=request["shrink"], idle_seconds=IDLE_SECONDS)
        settings = dataclasses.replace(settings, arena=arena)
    model = onnxpress.load(request["folder"], variant=request["variant"], settings=settings, task="feature-extraction")
    if request["job"] == "peak":
        return {"imports_mb": imports, **peak(model, request["seconds"])}
    if request["job"] == "burst":
        return burst(model)
    return many(model, request["requests"])


def peak(model: Any, seconds: float) -> dict[str, float]:
    """Calls of 32 texts of mixed lengths."""
    texts = texts_of(4, LONGEST, 128, seed=0)
    calls = [texts[start : start + 32] for start in range(0, len(texts), 32)]
    model.embed(calls[0])
    done, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or done < len(texts):
        model.embed(calls[done // 32 % len(calls)])
        done += 32
    return {"texts_per_second": done / taken, "peak_mb": peak_mb()}


def burst(model: Any) -> dict[str, float]:
    """Short texts; a burst of long ones; then nothing."""
    short, long = texts_of(4, 32, 64, seed=1), texts_of(200, LONGEST, 128, seed=2)
    for _ in range(3):
        model.embed(short)
    time.sleep(IDLE_SECONDS + 1)
    before = resident_mb()
    model.embed(long)
    after = resident_mb()
    time.sleep(IDLE_SECONDS + 2)
    return {"before_mb": before, "after_mb": after, "idle_mb": resident_mb()}


def many(model: Any, requests: int) -> dict[str, Any]:
    """One text at a time, mostly short; resident memory after each tenth."""
    draw = random.Random(3)
    texts = [
        text for low, high in ((2, 16), (2, 32), (2, LONGEST)) for text in texts_of(low, high, 500, seed=low + high)
    ]
    found = []
    for number in range(1, requests + 1):
        model.embed(texts[int(len(texts) * draw.random() ** 2)])
        if number % (requests // 10) == 0:
            found.append(resident_mb())
    return {"resident_mb": found, "peak_mb": peak_mb()}


def texts_of(low: int, high: int, count: int, seed: int) -> list[str]:
    """Texts of common words, each about one token; two more are the special ones."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(_WORDS, k=draw.randint(low, high) - 2 or 1)) for _ in range(count)]


def resident_mb() -> float:
    """Memory that this process holds, in 1e6 bytes."""
    return common.memory_bytes() / 1e6


def peak_mb() -> float:
    """The most it has held."""
    return common.memory_bytes(peak=True) / 1e6


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        sys.exit(main())
