"""`onnxpress tune BUNDLE`: the settings that suit this machine and this traffic."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.runtime.tuning import Tuning

HELP = "Find the threads, batches and memory settings that suit this machine and this traffic, and keep them for load."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder; it is not changed")
    parser.add_argument("--variant", metavar="V", help="which variant (default: the bundle's)")
    parser.add_argument(
        "--goal",
        choices=("latency", "throughput", "memory"),
        default="throughput",
        help="what is best; memory: the least that keeps 0.8 of the default's rate (default: throughput)",
    )
    parser.add_argument("--lengths", metavar="LOW-HIGH", help="tokens of the texts, such as 8-128 (default: sentences)")
    parser.add_argument("--texts", metavar="FILE", help="texts of your service, one on each line")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="texts in a call (default: 1 for latency, else 32; decoders: 8)"
    )
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="about how long (default: 60)")
    parser.add_argument("--forget", action="store_true", help="drop what is kept for the bundle here, measure nothing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, keep."""
    from onnxpress.cli.bench import progress_bar
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.errors import InvalidInputError
    from onnxpress.runtime.tuned import forget_tuned, keep_tuned
    from onnxpress.runtime.tuning import make_traffic, tune

    bundle = open_bundle(arguments.bundle)
    variant = bundle.manifest.variant(arguments.variant)
    if arguments.forget:
        dropped = forget_tuned(bundle, arguments.variant)
        if arguments.json:
            print(json.dumps({"dropped": dropped}))
            return 0
        print("dropped: load uses the default settings again" if dropped else "nothing is kept for this bundle here")
        return 0
    if variant.target != "cpu":
        raise InvalidInputError(f"variant {variant.name!r} is for {variant.target}; only CPU variants are tuned")
    if arguments.batch is not None and arguments.batch < 1:
        raise InvalidInputError(f"--batch is {arguments.batch}; give at least 1")
    if not 5 <= arguments.seconds <= 3600:
        raise InvalidInputError(f"--seconds is {arguments.seconds:g}; give 5 to 3600")
    if arguments.texts and arguments.lengths:
        raise InvalidInputError("give --texts or --lengths, not both")
    texts = None if arguments.texts is None else _lines(Path(arguments.texts))
    lengths = None
    if arguments.lengths is not None:
        lengths = _lengths(arguments.lengths, bundle.manifest.tokenizer.max_length)
    traffic = make_traffic(bundle, arguments.goal, arguments.batch, lengths, texts)
    with progress_bar(arguments.quiet) as progress:
        found = tune(bundle, variant, traffic, arguments.goal, arguments.seconds, progress)
    if found.winner is not None:
        keep_tuned(bundle, found.winner)
    else:
        forget_tuned(bundle, variant.name)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found) | {"traffic": traffic.described, "goal": arguments.goal}))
        return 0
    print(f"{bundle.manifest.source.name}, {variant.name}, {traffic.described}; goal: {arguments.goal}\n")
    print("\n".join(f"  {line}" for line in _table(found)))
    print(f"\n{_conclusion(found)}")
    return 0


def _table(found: Tuning) -> list[str]:
    rows = [f"{'settings':<18} {'rate/s':>9} {'x default':>10} {'peak MB':>9} {'x default':>10}"]
    for one in [*found.tried, *([found.confirmed] if found.confirmed else [])]:
        name = f"{one.name}, again" if one is found.confirmed else one.name
        rows.append(
            f"{name:<18} {one.rate:>9,.1f} {one.rate_ratio:>9.2f}x {one.peak_memory_bytes / 1e6:>9,.0f} "
            f"{one.memory_ratio:>9.2f}x"
        )
    return rows


def _conclusion(found: Tuning) -> str:
    if found.winner is None:
        return "nothing to gain: no settings are clearly better than the default, which load goes on using"
    winner = found.winner
    return (
        f"kept, {winner.gain:.2f}x as good as the default: {winner.settings.describe()}; onnxpress.load uses it from "
        "now on (onnxpress tune --forget drops it)"
    )


def _lengths(text: str, longest: int) -> tuple[int, int]:
    from onnxpress.runtime.errors import InvalidInputError

    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal() or not 1 <= int(low) <= int(high or low) <= longest:
        raise InvalidInputError(f"--lengths is {text!r}; give two numbers of tokens such as 8-128, at most {longest}")
    return int(low), int(high or low)


def _lines(path: Path) -> list[str]:
    from onnxpress.runtime.errors import InvalidInputError

    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read as UTF-8 text: {error}") from error
