"""Accuracy of every variant of a bundle on SemEval STS 2013, against the published figure; on SICK beside it.

`python -m bench.sts13 BUNDLE --sts FOLDER [--sick FILE]`: Spearman's correlation of cosine similarity with people's
scores over all rows of all files together, x 100. Shares no code with the evaluation that an export runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common

PUBLISHED = 80.60
"""all-MiniLM-L6-v2 on STS13 (the model's entry in MTEB)."""
MOST_FROM_PUBLISHED = 0.05
MOST_INT8_FROM_FP32 = 0.30


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.sts13", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--sts", required=True, metavar="FOLDER", type=Path)
    parser.add_argument("--sick", metavar="FILE", type=Path, help="a file of SICK 2014, for a second data set")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.sts13: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """Every variant on every data set, and the result."""
    from onnxpress import OnnxpressError
    from onnxpress.runtime.bundle import open_bundle

    data = {"sts13": common.read_sts(options.sts)}
    if options.sick:
        data["sick"] = common.read_sick(options.sick)
    facts = common.record()
    common.show_record(facts)
    try:
        names = [variant.name for variant in open_bundle(options.bundle).manifest.variants]
        points = {
            name: {key: round(spearman(options.bundle, name, rows), 3) for key, rows in data.items()} for name in names
        }
    except OnnxpressError as error:
        raise common.BadInputError(str(error)) from error
    print(f"\nSpearman x 100   {'   '.join(f'{key} ({len(rows)} pairs)' for key, rows in data.items())}")
    for name, found in points.items():
        print(f"  {name:<13}  {'               '.join(f'{value:7.3f}' for value in found.values())}")
    figures = {"benchmark": "sts13", "spearman_points": points, "published_points": PUBLISHED, "machine": facts}
    return common.finish(figures, make_limits(points), options.require)


def spearman(bundle: Path, variant: str, rows: Sequence[tuple[float, str, str]]) -> float:
    """The correlation, x 100."""
    import numpy as np
    from scipy.stats import spearmanr

    import onnxpress

    embed = onnxpress.load(bundle, variant=variant).embed
    first = embed([row[1] for row in rows]).astype(np.float64)
    second = embed([row[2] for row in rows]).astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return 100 * float(spearmanr((first * second).sum(axis=1) / lengths, [row[0] for row in rows]).statistic)


def make_limits(points: dict[str, dict[str, Any]]) -> list[common.Limit]:
    """FP32 and FP16 against the published figure, INT8 against FP32 on every data set."""
    fp32, int8 = points.get("fp32", {}), points.get("int8", {})
    limits = [
        common.Limit(
            f"{name} from the published {PUBLISHED:.2f}",
            abs(points[name]["sts13"] - PUBLISHED) if name in points else None,
            MOST_FROM_PUBLISHED,
        )
        for name in ("fp32", "fp16")
    ]
    for key in sorted({"sts13", *fp32}, reverse=True):
        difference = abs(int8[key] - fp32[key]) if key in fp32 and key in int8 else None
        limits.append(common.Limit(f"int8 from fp32 on {key}", difference, MOST_INT8_FROM_FP32))
    return limits


if __name__ == "__main__":
    sys.exit(main())
