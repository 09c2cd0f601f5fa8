"""Many callers of one model against the offline rate: what sharing a model between 64 threads costs.

`python -m bench.batching [BUNDLE]` serves texts of mixed lengths (`--words`, short ones more often) with the int8
variant of all-MiniLM-L6-v2; without BUNDLE it is pressed first, for which its weights must be installed (make demo).
Each contender runs in a process of its own (bench/batched.py), in turn, and the median over the rounds counts:

- offline: one call with all texts
- threads: 64 threads, each with one text per call, through a BatchingRunner
- tasks: the same with 64 asyncio tasks, for information
- loop: one call at a time, one text each, without a runner
- latency: one caller with one text per call, with and without a runner, alternating call by call

Required: threads >= 0.85x offline and >= 2.5x loop; latency <= 1.1x of the direct call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common

LEAST_OF_OFFLINE = 0.85
LEAST_OF_LOOP = 2.5
MOST_LATENCY = 1.1
RATES = ("offline", "threads", "tasks", "loop")
SENTENCES = common.ROOT / "models" / "sentence_pairs.tsv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    options = make_parser().parse_args(arguments)
    try:
        with bundle_of(options) as bundle:
            return run(options, bundle)
    except common.BadInputError as error:
        print(f"bench.batching: {error}", file=sys.stderr)
        return common.BAD_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.batching", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--variant", default="int8")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the model")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1280)
    parser.add_argument("--words", type=int, nargs=2, default=(3, 60), metavar=("LOW", "HIGH"), help="lengths of texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    return parser


@contextlib.contextmanager
def bundle_of(options: argparse.Namespace) -> Iterator[Path]:
    """The bundle that was given, or one made for the occasion."""
    if options.bundle is not None:
        yield options.bundle
        return
    import onnxpress

    with tempfile.TemporaryDirectory() as folder:
        config = onnxpress.ExportConfig(variants=("fp32", options.variant), measure="none")
        try:
            yield onnxpress.export("all-MiniLM-L6-v2", Path(folder) / "bundle", config).folder
        except onnxpress.OnnxpressError as error:
            raise common.BadInputError(str(error)) from error


def mixed_texts(count: int, low: int, high: int, seed: int = 0) -> list[str]:
    """Runs of words of real sentences; the logarithms of their lengths are spread evenly."""
    words = SENTENCES.read_text(encoding="utf-8").split()
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        length = round(low * (high / low) ** rng.random())
        start = rng.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def run(options: argparse.Namespace, bundle: Path) -> int:
    """Rounds and result."""
    if min(options.threads, options.callers, options.texts, options.rounds) < 1:
        raise common.BadInputError("--threads, --callers, --texts and --rounds must be at least 1")
    low, high = options.words
    if not 1 <= low <= high <= 500:
        raise common.BadInputError("--words must be two numbers from 1 to 500, the lower one first")
    facts = common.record()
    common.show_record(facts)
    environment = common.environment_for(options.threads)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (*RATES, "latency")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(mixed_texts(options.texts, *options.words)), encoding="utf-8")
        request = {
            "folder": str(bundle),
            "variant": options.variant,
            "threads": options.threads,
            "callers": options.callers,
            "texts_file": str(file),
        }
        for number in range(options.rounds):
            for name, answers in found.items():
                answers.append(common.run_json("bench.batched", {**request, "contender": name}, environment))
                print(f"  round {number + 1}, {name}: {_shown(answers[-1])}", flush=True)
    figures = summarize(found)
    show(figures)
    limits = [
        common.Limit("threads / offline", figures["threads_of_offline"], LEAST_OF_OFFLINE, at_least=True),
        common.Limit("threads / loop", figures["threads_of_loop"], LEAST_OF_LOOP, at_least=True),
        common.Limit("latency with / without the runner", figures["latency_ratio"], MOST_LATENCY),
    ]
    names = ("variant", "threads", "callers", "texts", "words", "rounds")
    settings = {"benchmark": "batching", **{name: getattr(options, name) for name in names}}
    return common.finish({**settings, **figures, "machine": facts}, limits, options.require)


def summarize(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds and the ratios of the medians."""
    figures: dict[str, Any] = {}
    for name in RATES:
        spread = common.Spread.of([answer["texts"] / answer["seconds"] for answer in found[name]])
        figures[f"{name}_texts_per_second"] = spread.median
        figures[f"{name}_texts_per_second_range"] = [spread.lowest, spread.highest]
        figures[f"{name}_cpu_ms_per_text"] = common.Spread.of(
            [1000 * answer["cpu_seconds"] / answer["texts"] for answer in found[name]]
        ).median
    for name in ("direct", "runner"):
        figures[f"{name}_median_ms"] = common.Spread.of([answer[f"{name}_ms"] for answer in found["latency"]]).median
    counts = found["threads"][-1]["counts"]
    return {
        **figures,
        "threads_of_offline": figures["threads_texts_per_second"] / figures["offline_texts_per_second"],
        "threads_of_loop": figures["threads_texts_per_second"] / figures["loop_texts_per_second"],
        "tasks_of_offline": figures["tasks_texts_per_second"] / figures["offline_texts_per_second"],
        "latency_ratio": figures["runner_median_ms"] / figures["direct_median_ms"],
        "texts_per_batch": counts["sequences"] / counts["batches"],
        "padding_fraction": 1 - counts["tokens"] / counts["padded_tokens"],
    }


def show(figures: Mapping[str, Any]) -> None:
    """The result as a table."""
    print("\ncontender   texts/s, median [range]     of offline   CPU ms a text")
    for name in RATES:
        rate = figures[f"{name}_texts_per_second"]
        spread = common.Spread(rate, *figures[f"{name}_texts_per_second_range"]).show(",.0f")
        share = rate / figures["offline_texts_per_second"]
        print(f"{name:<10}  {spread:<26}  {share:<11.2f}  {figures[f'{name}_cpu_ms_per_text']:.2f}")
    print(
        f"a single caller: {figures['runner_median_ms']:.2f} ms, directly {figures['direct_median_ms']:.2f} ms; ",
        end="",
    )
    print(f"the threads' batches: {figures['texts_per_batch']:.1f} texts, {figures['padding_fraction']:.1%} padding")


def _shown(answer: Mapping[str, Any]) -> str:
    if "seconds" in answer:
        return f"{answer['texts'] / answer['seconds']:,.0f} texts/s"
    return f"{answer['direct_ms']:.2f} ms directly, {answer['runner_ms']:.2f} ms through the runner"


if __name__ == "__main__":
    sys.exit(main())
