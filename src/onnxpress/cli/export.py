"""`onnxpress export MODEL --output DIR`."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnxpress.exporter import ExportConfig

HELP = "Trace, optimize, verify and measure a model, and write it as a bundle."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    from onnxpress.cli.data import add_evaluation_arguments

    parser.add_argument("model", metavar="MODEL", help="a local folder, an .onnx file, a recipe's name or a hub id")
    parser.add_argument("--output", "-o", metavar="DIR", required=True, help="the folder to create")
    parser.add_argument(
        "--task",
        help="what the model is for (inferred if not given): feature-extraction, text-classification, "
        "zero-shot-classification, text-ranking, token-classification, question-answering, fill-mask or "
        "text-generation",
    )
    parser.add_argument(
        "--variants",
        metavar="LIST",
        help="precisions to make: fp32, fp16, int8, int4, of encoders int8-static (ranges of activations found on "
        "texts beforehand), for CUDA bf16 (default: all the target runs, of encoders fp32,fp16,int8)",
    )
    parser.add_argument("--target", default="cpu", help="where it will run: cpu, cuda or tensorrt (default: cpu)")
    add_evaluation_arguments(parser)
    _add_quantization_arguments(parser)
    _add_goal_arguments(parser)
    parser.add_argument("--measure", default="quick", help="how long to measure: quick, full or none (default: quick)")
    parser.add_argument("--threads", type=int, help="CPU threads to measure with (default: the cores allowed)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    _add_bound_arguments(parser)
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the model (default: never)",
    )
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read weights stored as pickles where there are no safetensors",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is already at the output")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep results of earlier exports")
    parser.add_argument(
        "--json", action="store_true", help="print a machine-readable summary as the last thing on stdout"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress and no table")
    parser.add_argument("--verbose", "-v", action="store_true", help="show what the libraries underneath write")


def _add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """How variants of fewer bits are made."""
    parser.add_argument(
        "--calibration",
        metavar="PATH",
        action="append",
        help="texts to calibrate quantization on: JSONL, CSV, TSV or a dataset with `text`, plain text, or a folder of "
        "texts; `synthetic` takes random tokens; may be repeated (default: for encoders the texts of --eval, else "
        "random tokens; for decoders none, each weight is rounded by itself)",
    )
    parser.add_argument(
        "--calibration-columns", metavar="MAP", help="columns of these, as with --eval-columns: text, text_pair"
    )
    parser.add_argument(
        "--calibration-samples",
        type=int,
        metavar="N",
        help="texts to draw from them at most (default: 256; of decoders 2,048)",
    )
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="weights that share a scale in int4, of decoders in int8 too: 16, 32, 64, 128 (default: docs/hardware.md)",
    )
    parser.add_argument(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        help="blocks of weights without, or with, zero points (default: without in int8; docs/hardware.md)",
    )
    parser.add_argument(
        "--accuracy-level",
        type=int,
        metavar="N",
        help="4: products with such weights may round activations to 8 bits; 1: they compute in float32 (default: 4)",
    )
    parser.add_argument(
        "--head-bits",
        type=int,
        metavar="N",
        help="bits of the language model head and the token embedding, 4 or 8 (default: as the variant)",
    )
    parser.add_argument(
        "--calibration-method",
        metavar="NAME",
        help="how int8-static finds the range of an activation: minmax, percentile (99.99) or entropy (default: the "
        "better of the first two)",
    )
    parser.add_argument(
        "--migration",
        metavar="ALPHA",
        help="how far int8-static moves the scales of channels from activations to weights, from 0 to 1, or off "
        "(default: the better of 0.75 and off)",
    )
    parser.add_argument(
        "--embedding-bits",
        type=int,
        metavar="N",
        help="bits of the embedding tables in an encoder's int8 and int8-static, 8 or 4 (default: float32)",
    )


def _add_goal_arguments(parser: argparse.ArgumentParser) -> None:
    """What a variant has to be, and how long one is searched."""
    parser.add_argument(
        "--objective",
        default="throughput",
        help="what the default variant is chosen by: throughput, latency, size or memory (default: throughput)",
    )
    parser.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="points of the evaluation's metric (0-100) a variant may lose against PyTorch (default: 1); where it is "
        "given, mixtures of precisions are searched that hold it (docs/search.md)",
    )
    parser.add_argument(
        "--min-metric",
        type=float,
        metavar="X",
        help="the least value of the evaluation's metric, of perplexity the most, that a variant may have; a search is "
        "made for it as well",
    )
    parser.add_argument(
        "--search-budget",
        default="5m",
        metavar="TIME",
        help="how long the search may take, such as 90s, 5m or 1h (default: 5m); Ctrl-C ends it earlier",
    )


def _add_bound_arguments(parser: argparse.ArgumentParser) -> None:
    """How far variants may be from PyTorch."""
    parser.add_argument("--fp32-max-abs", type=float, metavar="X", help="bound of the FP32 gate (default: 1e-4)")
    parser.add_argument(
        "--fp16-cosine", type=float, metavar="X", help="bound of the FP16 gate for embeddings (default: 0.9995)"
    )
    parser.add_argument(
        "--int8-cosine", type=float, metavar="X", help="bound of the INT8 gate for embeddings (default: 0.98)"
    )
    parser.add_argument("--fp16-rms", type=float, metavar="X", help="bound of the FP16 gate for logits (default: 0.03)")
    parser.add_argument("--bf16-rms", type=float, metavar="X", help="bound of the BF16 gate for logits (default: 0.2)")
    parser.add_argument("--int8-rms", type=float, metavar="X", help="bound of the INT8 gate for logits (default: 0.2)")
    parser.add_argument("--int4-rms", type=float, metavar="X", help="bound of the INT4 gate for logits (default: 0.5)")


def run(arguments: argparse.Namespace) -> int:
    """Export and show the result."""
    from onnxpress.cli.display import ExportDisplay

    with ExportDisplay(quiet=arguments.quiet, plain=arguments.verbose) as display, _lasting_interrupt() as check:
        from onnxpress import export

        def show(step: str, detail: str, fraction: float | None) -> None:
            check()
            display.update(step, detail, fraction)

        result = export(
            arguments.model,
            arguments.output,
            _config(arguments),
            progress=show,
            verbose=arguments.verbose,
        )
        display.show_result(result.report, result.folder)
    if arguments.json:
        print(json.dumps(result.summary(), ensure_ascii=False), file=sys.stdout, flush=True)
    return 0


@contextlib.contextmanager
def _lasting_interrupt() -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt once Ctrl-C was pressed: some libraries swallow it while they import."""
    pressed = False

    def handle(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        nonlocal pressed
        if pressed:
            pressed = False  # a step that ends early for it, as the search does, is not stopped a second time
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield check
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _calibration(given: list[str] | None) -> tuple[Path, ...] | Literal["synthetic"] | None:
    from onnxpress.runtime.errors import InvalidInputError

    if not given or given == ["synthetic"]:
        return "synthetic" if given else None
    if "synthetic" in given:
        raise InvalidInputError(
            "--calibration synthetic takes random tokens in place of files; give one or the other (a file of that name "
            "is ./synthetic)"
        )
    return tuple(map(Path, given))


def _seconds(text: str) -> float:
    """A duration such as 90s, 5m or 1h; a number alone is in seconds.

    Raises:
        InvalidInputError: it is none.
    """
    from onnxpress.runtime.errors import InvalidInputError

    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        return float(text) if unit is None else unit * float(text[:-1])
    except ValueError as error:
        raise InvalidInputError(f"the time {text!r} is none; give a number and s, m or h, such as 90s or 5m") from error


def _migration(given: str | None) -> float | Literal["off"] | None:
    from onnxpress.runtime.errors import InvalidInputError

    if given is None:
        return None
    if given == "off":
        return "off"
    try:
        return float(given)
    except ValueError as error:
        raise InvalidInputError(f"--migration is {given!r}; give a number from 0 to 1, or off") from error


def _config(arguments: argparse.Namespace) -> ExportConfig:
    from onnxpress.cli.data import mapping_of
    from onnxpress.exporter import ExportConfig, Thresholds

    bounds = {
        name: getattr(arguments, name)
        for name in ("fp32_max_abs", "fp16_cosine", "int8_cosine", "fp16_rms", "bf16_rms", "int8_rms", "int4_rms")
        if getattr(arguments, name) is not None
    }
    variants = arguments.variants
    return ExportConfig(
        task=arguments.task,
        variants=None if variants is None else tuple(name.strip() for name in variants.split(",") if name.strip()),
        target=arguments.target,
        evaluation=tuple(map(Path, arguments.eval)) if arguments.eval else None,
        evaluation_columns=mapping_of("--eval-columns", arguments.eval_columns),
        evaluation_labels=mapping_of("--eval-labels", arguments.eval_labels),
        evaluation_split=arguments.eval_split,
        evaluation_samples=arguments.eval_samples,
        calibration=_calibration(arguments.calibration),
        calibration_columns=mapping_of("--calibration-columns", arguments.calibration_columns),
        calibration_samples=arguments.calibration_samples,
        block_size=arguments.block_size,
        symmetric=arguments.symmetric,
        accuracy_level=arguments.accuracy_level,
        head_bits=arguments.head_bits,
        calibration_method=arguments.calibration_method,
        migration=_migration(arguments.migration),
        embedding_bits=arguments.embedding_bits,
        objective=arguments.objective,
        max_accuracy_drop=arguments.max_accuracy_drop,
        min_metric=arguments.min_metric,
        search_budget=_seconds(arguments.search_budget),
        trust_remote_code=arguments.trust_remote_code,
        allow_pickle=arguments.allow_pickle,
        revision=arguments.revision,
        force=arguments.force,
        measure=arguments.measure,
        threads=arguments.threads,
        cache=not arguments.no_cache,
        thresholds=Thresholds(**bounds) if bounds else None,
    )
