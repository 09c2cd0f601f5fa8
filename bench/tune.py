"""Whether `onnxpress tune` finds settings no slower than the default, three times out of three.

`python -m bench.tune BUNDLE` runs the command three times, each with an empty cache of its own, and then measures what
it kept against the default, independently of it: processes that take turns, whole passes over the same texts, in an
order that alternates. Required: in each run the kept settings are at least 0.97x as fast (3 % is what two processes
with equal settings may differ by), or the command said that there is nothing to gain. About 5 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench import common

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
    runs: list[dict[str, Any]] = []
    for number in range(RUNS):
        with tempfile.TemporaryDirectory() as cache:
            answer = tune(options, cache)
        winner = answer["winner"]
        ratio = 1.0 if winner is None else check(options, winner)
        said = "nothing to gain" if winner is None else f"{winner['gain']:.2f}x, checked: {ratio:.2f}x"
        print(f"run {number + 1}: {said}  {'' if winner is None else winner['settings']}", flush=True)
        runs.append({"winner": winner, "checked_ratio": ratio})
    limits = [
        common.Limit(f"run {number}: kept settings / default", each["checked_ratio"], LEAST_RATIO, at_least=True)
        for number, each in enumerate(runs, 1)
    ]
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


def check(options: argparse.Namespace, winner: dict[str, Any]) -> float:
    """The median of pairs: the rate with the kept settings to that with the default's."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.decoding import decode
    from onnxpress.runtime.measuring import Worker
    from onnxpress.runtime.settings import ServingSettings
    from onnxpress.runtime.tuning import make_traffic, settings_command

    bundle = open_bundle(options.bundle)
    variant = bundle.manifest.variant(winner["variant"])
    traffic = make_traffic(bundle, options.goal, None, None, None)
    asked: dict[str, Any] = {
        "do": "throughput",
        "texts": list(traffic.texts[:64]),
        "batch": traffic.batch,
        "seconds": 1,
    }
    if traffic.new_tokens is not None:
        prompts = list(traffic.texts)
        asked = {"do": "decoding", "prompts": prompts, "batch": traffic.batch, "new_tokens": traffic.new_tokens}
        asked["seconds"] = 1
    settings = {"default": ServingSettings(), "kept": decode(ServingSettings, winner["settings"])}
    with ExitStack() as stack:
        workers = {}
        for name, each in settings.items():
            workers[name] = Worker(name, settings_command(bundle, variant, each))
            stack.callback(workers[name].close)
        ratios: list[float] = []
        for number in range(PAIRS):
            rates = {name: workers[name].ask(**asked) for name in list(workers)[:: 1 if number % 2 else -1]}
            ratios.append(rates["kept"] / rates["default"])
    return float(statistics.median(ratios))


if __name__ == "__main__":
    sys.exit(main())
