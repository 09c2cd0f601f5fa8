"""Encoders and decoders on an NVIDIA GPU against PyTorch in the same precision: everything onnxpress claims about CUDA.

`python -m bench.gpu [--folder DIR] [--require] [--output docs/gpu.md]` is for a machine with CUDA 13 and a GPU. First
it says what the machine lacks, each thing in a line, and exits with status 2. Then, with random weights (an encoder in
BERT-base's shape, a Llama of 135 million parameters), each measured thing in a process of its own, asked in turn:

- placement: which provider each node runs on; nothing may be computed on the CPU, shapes may;
- parity: FP16 on the GPU against what PyTorch computed in float32 (docs/verification.md);
- encoder: from token ids to vectors, batches of 1 and 32 with 128 tokens, and 512 sequences of 8 to 256 tokens;
- decoder: prompts of 128 tokens, 64 new tokens, 1, 4 and 16 at once;
- both with CUDA graphs and without, and PyTorch in FP16 (sdpa), its decoder also compiled with a cache of fixed size.

It takes about 5 minutes, most of it exports and compilation. `--dry-run` does the same with tiny models on the CPU,
where no figure means anything, to show that the benchmark works. `--output FILE` writes the result between two marks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.gpus import models, needs, tables
from onnxpress.runtime.errors import OnnxpressError

SHAPES = ((1, 128), (32, 128))
MIXED = [8 + (248 * place) // 511 for place in range(512)]
BATCHES = (1, 4, 16)
PROMPT_TOKENS, NEW_TOKENS = 128, 64
ENCODERS = ("onnxpress", "onnxpress graphs", "PyTorch")
DECODERS = ("onnxpress", "onnxpress graphs", "PyTorch", "PyTorch compiled")

Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the models are made, and kept for another time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of a shape")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures into it, between the marks")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU; figures mean nothing")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        _check(options)
        with common.working_folder(options.folder) as folder:
            return run(options, folder)
    except common.BadInputError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return common.BAD_INPUT
    except OnnxpressError as error:  # such as a variant that the gate refuses on this GPU
        print(f"bench.gpu: {error}", file=sys.stderr)
        return common.NOT_MET


def _check(options: argparse.Namespace) -> None:
    """
    Raises:
        BadInputError: options that cannot be meant, or a machine that lacks something.
    """
    if options.rounds < 1 or options.seconds <= 0:
        raise common.BadInputError("--rounds must be at least 1, --seconds more than 0")
    if options.dry_run and (options.require or options.output):
        raise common.BadInputError("figures of a dry run mean nothing; leave --require and --output out")
    if options.output is not None:
        tables.require_marks(options.output)
    if not options.dry_run and (lacking := needs.missing()):
        raise common.BadInputError(
            "this machine lacks what the benchmark needs:\n" + "\n".join(f"  - {line}" for line in lacking)
        )


def run(options: argparse.Namespace, folder: Path) -> int:
    """Models, checks, rounds, result."""
    from onnxpress.exporter.quiet import quiet

    facts = common.record()
    common.show_record(facts)
    print(f"GPU: {facts['gpu'] or 'none'}")
    device = "cpu" if options.dry_run else "cuda"
    with quiet():
        encoder = models.make_encoder(folder, small=options.dry_run)
        decoder = models.make_decoder(folder, small=options.dry_run)
    environment = common.environment_for(1) if options.dry_run else common.offline_environment()
    figures: Figures = {"device": device, "checks": {}}
    for name, pressed in (("encoder", encoder), ("decoder", decoder)):
        request = {"bundle": str(pressed.bundle), "variant": models.VARIANT, "device": device}
        figures["checks"][name] = common.run_json("bench.gpus.checking", request, environment)
    figures["encoder"] = measure_encoder(options, encoder, device, environment)
    figures["decoder"] = measure_decoder(options, decoder, device, environment)
    document = tables.document(figures, facts)
    print("\n" + document)
    if options.dry_run:
        print("\na dry run: everything works, and no figure means anything")
        return 0
    if options.output is not None:
        tables.write(options.output, document)
    return common.finish({"benchmark": "gpu", **figures, "machine": facts}, limits_of(figures), options.require)


def measure_encoder(
    options: argparse.Namespace, pressed: models.Pressed, device: str, environment: Mapping[str, str]
) -> Figures:
    """By engine: medians of each shape, and the rate of mixed lengths."""
    questions: dict[str, dict[str, Any]] = {
        tables.shape_name(batch, tokens): {"batch": batch, "tokens": tokens, "seconds": options.seconds}
        for batch, tokens in SHAPES
    }
    questions["mixed"] = {"lengths": MIXED[::16] if options.dry_run else MIXED, "rounds": 3}
    # A graph for each of the many shapes of mixed lengths would be captured more often than replayed.
    skipped = {("onnxpress graphs", "mixed")}
    workers = _start("bench.gpus.encoder", ENCODERS, pressed, device, environment, {})
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in workers}
    for _ in range(options.rounds):
        for question, request in questions.items():
            for name, worker in workers.items():
                if (name, question) not in skipped:
                    found[name].setdefault(question, []).append(worker.ask(request))
    for worker in workers.values():
        worker.close()
    return {name: {what: _medians(answers) for what, answers in by.items()} for name, by in found.items()}


def measure_decoder(
    options: argparse.Namespace, pressed: models.Pressed, device: str, environment: Mapping[str, str]
) -> Figures:
    """By engine and batch: medians of the rates of prompts and of steps."""
    request = {
        "threads": 1,
        "most_prompts": max(BATCHES),
        "prompt_tokens": 16 if options.dry_run else PROMPT_TOKENS,
        "new_tokens": 24 if options.dry_run else NEW_TOKENS,
    }
    workers = _start("bench.gpus.decoder", DECODERS, pressed, device, environment, request)
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in workers}
    for _ in range(options.rounds):
        for batch in BATCHES:
            for name, worker in workers.items():
                found[name].setdefault(str(batch), []).append(worker.ask({"batch": batch}))
    for worker in workers.values():
        worker.close()
    return {name: {batch: _medians(answers) for batch, answers in by.items()} for name, by in found.items()}


def limits_of(figures: Figures) -> list[common.Limit]:
    """What must hold on a GPU."""
    limits = []
    for name, found in figures["checks"].items():
        limits.append(common.Limit(f"{name}: computed on the CPU", float(bool(found["captures"])), 0))
        limits.append(common.Limit(f"{name}: FP16 agrees with PyTorch", float(found["passed"]), 1, at_least=True))
    encoder, decoder = figures["encoder"], figures["decoder"]
    for what in (*(tables.shape_name(*shape) for shape in SHAPES), "mixed"):
        found = encoder["onnxpress"][what]["texts_per_second"] / encoder["PyTorch"][what]["texts_per_second"]
        limits.append(common.Limit(f"encoder {what} / PyTorch", found, 1.0, at_least=True))
    for figure in ("prefill", "decode"):
        found = decoder["onnxpress"]["1"][figure] / decoder["PyTorch"]["1"][figure]
        limits.append(common.Limit(f"decoder {figure} 1 / PyTorch", found, 1.0, at_least=True))
    found = decoder["onnxpress graphs"]["1"]["decode"] / decoder["onnxpress"]["1"]["decode"]
    limits.append(common.Limit("decode 1, CUDA graphs / without", found, 1.0, at_least=True))
    return limits


def _start(
    module: str,
    engines: Sequence[str],
    pressed: models.Pressed,
    device: str,
    environment: Mapping[str, str],
    more: Mapping[str, Any],
) -> dict[str, common.Worker]:
    request = {
        "bundle": str(pressed.bundle),
        "model": str(pressed.model),
        "variant": models.VARIANT,
        "vocabulary": pressed.vocabulary,
        "device": device,
        **more,
    }
    return {
        name: common.Worker(module, {**request, "engine": name, "seed": seed}, environment)
        for seed, name in enumerate(engines)
    }


def _medians(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {figure: statistics.median(answer[figure] for answer in answers) for figure in answers[0]}


if __name__ == "__main__":
    sys.exit(main())
