"""A search for the fastest graph that holds the accuracy asked for, end to end: what it finds, how fast, in what time.

`python -m bench.search MODEL --eval FILE [--max-accuracy-drop POINTS]`: exports the model with nothing from the cache,
then evaluates and times the chosen variant against FP32 in onnxruntime, in turn, apart from what the export measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common

LEAST_SPEEDUP = 1.25
MOST_SECONDS = 300.0
_ROUNDS = 15
_TEXTS = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, measure and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.search", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", metavar="MODEL", type=common.existing_folder)
    parser.add_argument("--eval", required=True, metavar="FILE", type=Path)
    parser.add_argument("--max-accuracy-drop", default=1.0, type=float, metavar="POINTS")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.search: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """The export, what it found, and the chosen variant against FP32."""
    from onnxpress import ExportConfig, OnnxpressError, export

    facts = common.record()
    common.show_record(facts)
    config = ExportConfig(
        evaluation=(options.eval,),
        max_accuracy_drop=options.max_accuracy_drop,
        threads=options.threads,
        measure="none",
        cache=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            result = export(options.model, Path(folder) / "bundle", config)
        except OnnxpressError as error:
            raise common.BadInputError(str(error)) from error
        seconds = time.perf_counter() - start
        found = result.report["search"]
        if found is None:
            raise common.BadInputError(f"nothing was searched: the model is for {result.report['model']['task']}")
        chosen = result.manifest.default_variant
        speedup = time_against_fp32(result.folder, chosen, options.threads)
    show_trials(found)
    drops = {row["name"]: row["accuracy_drop"] for row in result.report["variants"]}
    print(f"\n{found['sentence']}")
    print(f"drop on the whole evaluation: {drops[chosen]:.2f}; export with search: {seconds:.0f} s")
    figures = {
        "benchmark": "search",
        "variant": chosen,
        "speedup": round(speedup, 3),
        "drop": drops[chosen],
        "export_s": round(seconds, 1),
        "search_s": found["seconds"],
        "trials": len(found["trials"]),
        "held_out": found["held_out"],
        "machine": facts,
    }
    limits = [
        common.Limit("times as fast as FP32", speedup, LEAST_SPEEDUP, at_least=True),
        common.Limit("points lost on the evaluation", drops[chosen], options.max_accuracy_drop),
        common.Limit("seconds of the export with its search", seconds, MOST_SECONDS),
    ]
    return common.finish(figures, limits, options.require)


def show_trials(found: dict[str, Any]) -> None:
    """A line for each graph that was tried."""
    print(f"\n  {'graph':<14} {'drop':>6} {'speed':>6} {'divergence':>11}  holds  nodes")
    for trial in found["trials"]:
        nodes = ", ".join(f"{count} {precision}" for precision, count in trial["nodes"].items())
        print(
            f"  {trial['name']:<14} {trial['drop']:6.2f} {trial['speedup']:6.2f} {trial['divergence']:11.2e}  "
            f"{'yes' if trial['holds'] else 'no':<5}  {nodes}"
        )


def time_against_fp32(bundle: Path, variant: str, threads: int) -> float:
    """How many times as fast a variant is, both asked in turn for the same texts."""
    import onnxpress
    from onnxpress.runtime.timed_texts import own_texts
    from onnxpress.runtime.workload import work_of

    texts = own_texts()[:_TEXTS]
    work = [work_of(onnxpress.load(bundle, variant=name, threads=threads)) for name in ("fp32", variant)]
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for do, record in zip(work, times, strict=True):
            start = time.perf_counter()
            do(texts)
            record.append(time.perf_counter() - start)
    ratios: list[float] = [before / after for before, after in zip(*times, strict=True)]
    return float(statistics.median(ratios))


if __name__ == "__main__":
    sys.exit(main())
