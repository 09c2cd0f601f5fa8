"""Throughput of a bundle against sentence-transformers (PyTorch FP32), and against what the processor can do.

`python -m bench.embed BUNDLE --model FOLDER --sts FOLDER` encodes 3,000 sentences, tokenization included, with the
bundle's default variant, its fp32 variant and sentence-transformers, each in a process of its own that starts, warms
up, encodes the list once and ends: in turn (A B C, A B C, ...), so that only one works at a time. The median counts.

The ceiling for FP32 is the best rate of float32 matrix products in onnxruntime (bench/gemm.py), measured in turn with
the others. Useful work is the tokens of the texts, without padding, times the work of the matrix products for each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.flops import flops_per_token_of

SENTENCES = 3000
LEAST_DEFAULT_RATIO = 2.4
LEAST_FP32_RATIO = 1.5
LEAST_FRACTION_OF_PEAK = 0.90

REFERENCE = "sentence-transformers"
DEFAULT, FP32, GEMM = "default", "fp32", "gemm"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    options = make_parser().parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.embed: {error}", file=sys.stderr)
        return common.BAD_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.embed", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--model", required=True, metavar="FOLDER", type=common.existing_folder)
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--sts", metavar="FOLDER", type=Path, help="STS files: score, sentence, sentence between tabs")
    texts.add_argument("--texts", metavar="FILE", nargs="+", type=Path, help="text files, a text on each line")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    return parser


def run(options: argparse.Namespace) -> int:
    """Physics, rounds, result."""
    if options.threads < 1 or options.rounds < 1:
        raise common.BadInputError("--threads and --rounds must be at least 1")
    facts = common.record()
    common.show_record(facts)
    texts = common.read_lines(options.texts) if options.texts else common.sts_sentences(options.sts, SENTENCES)
    if not texts:
        raise common.BadInputError("there are no texts in the files")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        contenders = make_contenders(options, file)
        environment = common.environment_for(options.threads)
        work = state_work(options, contenders[FP32][1], environment, len(texts))
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for number in range(options.rounds):
            for name, (module, request) in contenders.items():
                found[name].append(common.run_json(module, request, environment))
                print(f"  round {number + 1}, {name}: {_shown(found[name][-1], len(texts))}", flush=True)
    figures = summarize(found, len(texts), work)
    show(figures)
    limits = [
        common.Limit("default / sentence-transformers", figures["default_ratio"], LEAST_DEFAULT_RATIO, at_least=True),
        common.Limit("fp32 / sentence-transformers", figures["fp32_ratio"], LEAST_FP32_RATIO, at_least=True),
        common.Limit("fp32 / GEMM peak", figures["fp32_fraction_of_peak"], LEAST_FRACTION_OF_PEAK, at_least=True),
    ]
    settings = {"benchmark": "embed", "threads": options.threads, "rounds": options.rounds}
    return common.finish({**settings, **work, **figures, "machine": facts}, limits, options.require)


def make_contenders(options: argparse.Namespace, texts_file: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Module and request of each measuring process, in the order they take turns."""
    common_part = {"texts_file": str(texts_file), "threads": options.threads}
    bundle = {"contender": "bundle", "folder": str(options.bundle), **common_part}
    return {
        GEMM: ("bench.gemm", {"threads": options.threads}),
        DEFAULT: ("bench.encoding", {**bundle, "variant": None}),
        FP32: ("bench.encoding", {**bundle, "variant": "fp32"}),
        REFERENCE: (
            "bench.encoding",
            {"contender": "sentence-transformers", "folder": str(options.model), **common_part},
        ),
    }


def state_work(
    options: argparse.Namespace, fp32: Mapping[str, Any], environment: Mapping[str, str], texts: int
) -> dict[str, Any]:
    """What has to be computed, said before anything is timed."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.errors import OnnxpressError

    try:
        bundle = open_bundle(options.bundle)
        model = bundle.path_of(bundle.manifest.variant("fp32").model)
    except OnnxpressError as error:
        raise common.BadInputError(str(error)) from error
    flops = flops_per_token_of(model)
    counted = common.run_json("bench.encoding", {**fp32, "contender": "padding"}, environment)
    tokens, padded = counted["tokens"], counted["tokens_with_padding"]
    work = {
        "default_variant": bundle.manifest.default_variant,
        "texts": texts,
        "tokens": tokens,
        "padding_fraction": 1 - tokens / padded,
        "runs": counted["runs"],
        "matmul_flops_per_token": flops,
        "useful_gflops": tokens * flops / 1e9,
    }
    print(f"\n{texts:,} texts, {tokens:,} tokens ({tokens / texts:.1f} each), ", end="")
    print(f"{work['padding_fraction']:.1%} padding beside them in {counted['runs']} runs")
    print(f"{flops / 1e6:.2f} MFLOP for each token in matrix products: {work['useful_gflops']:,.0f} GFLOP in all")
    return work


def summarize(found: Mapping[str, Sequence[Mapping[str, Any]]], texts: int, work: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over the rounds, ratios of the medians, and the share of the best GEMM rate that FP32 reaches."""
    rates = {
        name: common.Spread.of([texts / answer["seconds"] for answer in found[name]])
        for name in (DEFAULT, FP32, REFERENCE)
    }
    peak = max(found[GEMM], key=lambda answer: float(answer["gemm_gflops_per_second"]))
    reached = work["useful_gflops"] / texts * rates[FP32].median
    figures: dict[str, Any] = {}
    for name, spread in rates.items():
        key = name.replace("-", "_")
        figures[f"{key}_texts_per_second"] = spread.median
        figures[f"{key}_texts_per_second_range"] = [spread.lowest, spread.highest]
    return {
        **figures,
        "default_ratio": rates[DEFAULT].median / rates[REFERENCE].median,
        "fp32_ratio": rates[FP32].median / rates[REFERENCE].median,
        "fp32_gflops_per_second": reached,
        "gemm_peak_gflops_per_second": peak["gemm_gflops_per_second"],
        "gemm_peak_size": [peak["rows"], peak["inner"], peak["columns"]],
        "gemm_gflops_per_second_rounds": [answer["gemm_gflops_per_second"] for answer in found[GEMM]],
        "fp32_fraction_of_peak": reached / peak["gemm_gflops_per_second"],
    }


def show(figures: Mapping[str, Any]) -> None:
    """The result as a table."""
    print("\ncontender               texts/s, median [range]     ratio")
    for name, ratio in ((DEFAULT, "default_ratio"), (FP32, "fp32_ratio"), (REFERENCE, None)):
        key = name.replace("-", "_") + "_texts_per_second"
        lowest, highest = figures[f"{key}_range"]
        spread = common.Spread(figures[key], lowest, highest).show(",.0f")
        print(f"{name:<22}  {spread:<26}  {figures[ratio] if ratio else 1:.2f}x")
    size = "x".join(map(str, figures["gemm_peak_size"]))
    print(f"GEMM peak {figures['gemm_peak_gflops_per_second']:.0f} GFLOP/s (at {size}), FP32 does ", end="")
    print(f"{figures['fp32_gflops_per_second']:.0f} useful GFLOP/s: {figures['fp32_fraction_of_peak']:.1%} of it")


def _shown(answer: Mapping[str, Any], texts: int) -> str:
    if "seconds" in answer:
        return f"{texts / answer['seconds']:,.0f} texts/s"
    return f"{answer['gemm_gflops_per_second']:.0f} GFLOP/s"


if __name__ == "__main__":
    sys.exit(main())
