"""How long the main job takes: `onnxpress export all-MiniLM-L6-v2 --no-cache --measure quick`, three variants.

`python -m bench.export_time` runs it once, into a folder that is then removed, and prints the time of each step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common

MOST_SECONDS = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and print; the exit status says whether the limit is met if it is required."""
    parser = argparse.ArgumentParser(prog="bench.export_time", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="a recipe, folder or hub id")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if the limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.export_time: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """The export and the result."""
    facts = common.record()
    common.show_record(facts)
    with tempfile.TemporaryDirectory() as folder:
        seconds, report = time_export(options.model, Path(folder) / "bundle")
    steps = {step["name"]: step["seconds"] for step in report["steps"]}
    variants = [variant["name"] for variant in report["variants"] if variant["status"] == "passed"]
    print("\nstep          seconds")
    for name, took in steps.items():
        print(f"{name:<12}  {took:7.1f}")
    # Starting Python, importing, and what comes after the report is written: the page and the seal.
    print(f"{'the rest':<12}  {seconds - sum(steps.values()):7.1f}")
    print(f"{'all':<12}  {seconds:7.1f}   passed: {', '.join(variants)}")
    figures = {
        "benchmark": "export_time",
        "export_seconds": seconds,
        "step_seconds": steps,
        "variants_passed": variants,
        "machine": facts,
    }
    return common.finish(figures, [common.Limit("export, seconds", seconds, MOST_SECONDS)], options.require)


def time_export(model: str, output: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and the report it wrote.

    Raises:
        BadInputError: the export failed; the text has the last line of what it said.
    """
    command = [sys.executable, "-m", "onnxpress", "export", model, "--output", str(output)]
    command += ["--no-cache", "--measure", "quick"]
    print(f"\n$ onnxpress {' '.join(command[3:])}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise common.BadInputError(f"the export failed with status {done.returncode}: {said[:300]}")
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return seconds, report


if __name__ == "__main__":
    sys.exit(main())
