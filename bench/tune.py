"""Whether `onnxpress tune` finds settings no slower than the default, three times out of three.

`python -m bench.tune BUNDLE` runs the command three times, each with an empty cache of its own, and then measures what
each kept against the default, independently of it: processes that take turns, whole passes over the same texts, in an
order that alternates. All three are compared in the same rounds, so that a machine that is busy for some seconds spoils
a few pairs of each and not all pairs of one. Required: in each run the kept settings are at least 0.97x as fast (3 % is
what two processes with equal settings may differ by), or the command said that there is nothing to gain. About 5
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bench import common

if TYPE_CHECKING:
    from onnxpress.runtime.tuning import Traffic

RUNS = 3
PAIRS = 9
LEAST_RATIO = 0.97


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    options = make_parser().parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.tune: {error}", file=sys.stderr)
        return common.BAD_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.tune", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--goal", choices=("latency", "throughput"), default="throughput")
    parser.add_argument("--seconds", type=float, default=45, help="of each run of onnxpress tune")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs, checks, result."""
    facts = common.record()
    common.show_record(facts)
    winners: dict[str, dict[str, Any] | None] = {}
    for number in range(1, RUNS + 1):
        with tempfile.TemporaryDirectory() as cache:
            winner = tune(options, cache)["winner"]
        winners[f"run {number}"] = winner
        said = "nothing to gain" if winner is None else f"{winner['gain']:.2f}x  {winner['settings']}"
        print(f"run {number}: {said}", flush=True)
    kept = {name: winner for name, winner in winners.items() if winner is not None}
    ratios = dict.fromkeys(winners, 1.0) | (check(options, kept) if kept else {})
    limits = [
        common.Limit(f"{name}: kept settings / default", ratio, LEAST_RATIO, at_least=True)
        for name, ratio in ratios.items()
    ]
    runs = [{"winner": winner, "checked_ratio": ratios[name]} for name, winner in winners.items()]
    return common.finish(
        {"benchmark": "tune", "goal": options.goal, "runs": runs, "machine": facts}, limits, options.require
    )


def tune(options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "onnxpress", "tune", str(options.bundle), "--json", "--quiet"]
    command += ["--goal", options.goal, "--seconds", str(options.seconds)]
    environment = os.environ | {"ONNXPRESS_CACHE": cache}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=common.ROOT, check=False)
    if done.returncode:
        raise common.BadInputError((done.stderr.strip().splitlines() or ["onnxpress tune failed"])[-1])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(options: argparse.Namespace, kept: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Of each the median of pairs: the rate with the kept settings to that with the default's."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.decoding import decode
    from onnxpress.runtime.measuring import Worker
    from onnxpress.runtime.settings import ServingSettings
    from onnxpress.runtime.tuning import DEFAULT, make_traffic, settings_command

    bundle = open_bundle(options.bundle)
    variant = bundle.manifest.variant(next(iter(kept.values()))["variant"])
    asked = _question(make_traffic(bundle, options.goal, None, None, None))
    settings = {name: decode(ServingSettings, winner["settings"]) for name, winner in kept.items()}
    ratios: dict[str, list[float]] = {name: [] for name in kept}
    with ExitStack() as stack:
        workers = {}
        for name, each in {DEFAULT: ServingSettings(), **settings}.items():
            workers[name] = Worker(name, settings_command(bundle, variant, each))
            stack.callback(workers[name].close)
        for turn in range(PAIRS):
            rates = {name: workers[name].ask(**asked) for name in list(workers)[:: 1 if turn % 2 else -1]}
            for name, found in ratios.items():
                found.append(rates[name] / rates[DEFAULT])
    return {name: float(statistics.median(found)) for name, found in ratios.items()}


def _question(traffic: Traffic) -> dict[str, Any]:
    """What a measuring process is asked for a rate."""
    asked: dict[str, Any] = {"batch": traffic.batch, "seconds": 1}
    if traffic.new_tokens is None:
        return asked | {"do": "throughput", "texts": list(traffic.texts[:64])}
    return asked | {"do": "decoding", "prompts": list(traffic.texts), "new_tokens": traffic.new_tokens}


if __name__ == "__main__":
    sys.exit(main())
