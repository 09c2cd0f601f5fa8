"""Generation by a bundle against onnxruntime-genai, llama.cpp and PyTorch, on a Llama of 135 million parameters.

`python -m bench.generate [--folder DIR] [--python PYTHON] [--require]` makes the model with random weights (hidden size
576, 30 layers, 9 heads that share 3 keys, vocabulary 49152) in each engine's own form and starts every engine in a
process of its own. They are asked in turn (A B C, A B C, ...), so that only one works at a time and what the machine
does meanwhile meets all of them: prompts of 128 tokens, 64 new tokens, equal threads; in each round three times one
prompt, once 4 and once 16 together. A ratio is formed of neighbouring answers; the median of all of them counts.

The rivals come from the interpreter that `--python` names, which needs onnxruntime-genai, llama-cpp-python, gguf, torch
and transformers. llama.cpp is best built on the machine it is measured on (`CMAKE_ARGS=-DGGML_NATIVE=ON pip install
--no-binary llama-cpp-python llama-cpp-python`); what it says of its build is printed.

A step of one request must read all weights, so memory bandwidth bounds it; the share of that bound is shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.generating import models

BATCHES = (1, 4, 16)
_ROUND = (1, 1, 1, 4, 16)
PROMPT_TOKENS = 128
NEW_TOKENS = 64
OURS = {"fp32": "onnxpress fp32", "int8": "onnxpress int8", "int4": "onnxpress int4"}
NEIGHBOURS = (
    *("onnxpress fp32", "genai fp32", "llama.cpp f32", "PyTorch"),
    *("onnxpress int4", "genai int4", "llama.cpp q4_0", "onnxpress int8", "llama.cpp q8_0"),
)
"""In which order engines are asked: those that are compared, one after the other."""
RATIOS = (
    # what, engine, against, which figure, the least it must be
    ("FP32 decode / genai", "onnxpress fp32", "genai fp32", "decode", 1.2),
    ("FP32 prefill / genai", "onnxpress fp32", "genai fp32", "prefill", 1.7),
    ("INT4 decode / genai int4", "onnxpress int4", "genai int4", "decode", 1.1),
    ("INT4 prefill / genai int4", "onnxpress int4", "genai int4", "prefill", 1.7),
    ("INT8 decode / llama.cpp q8_0", "onnxpress int8", "llama.cpp q8_0", "decode", 0.9),
)
LEAST_BATCH_GAIN = 5.0
"""Decoding 16 prompts of mixed lengths against one, in FP32."""

Figures = dict[str, Any]
_BANDWIDTH = "bench.generating.bandwidth"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.generate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the models are made, and kept for another time")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the rivals (default: this one)")
    parser.add_argument("--only", nargs="+", metavar="ENGINE", help="measure these engines alone, such as 'genai int4'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        if options.threads < 1 or options.rounds < 1:
            raise common.BadInputError("--threads and --rounds must be at least 1")
        with common.working_folder(options.folder) as folder:
            return run(options, folder)
    except common.BadInputError as error:
        print(f"bench.generate: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace, folder: Path) -> int:
    """Models, rounds, result."""
    facts = common.record()
    common.show_record(facts)
    engines = make_engines(options, folder)
    environment = common.environment_for(options.threads)
    workers = {
        name: common.Worker(f"bench.generating.{module}", {**request, "seed": seed}, environment, python)
        for seed, (name, (python, module, request)) in enumerate(engines.items())
    }
    llama = next((worker.ask({}) for name, worker in workers.items() if name.startswith("llama.cpp")), {})
    if llama:
        print(f"llama.cpp ({llama['version']}): {llama['build']}")
    figures = measure(workers, options.rounds, lambda: common.run_json(_BANDWIDTH, _threads(options), environment))
    for worker in workers.values():
        worker.close()
    show(figures, engines)
    found = {what: ratio(figures, one, other, figure) for what, one, other, figure, _ in RATIOS}
    limits = [common.Limit(what, found[what], least, at_least=True) for what, _, _, _, least in RATIOS]
    if figures["mixed"]:
        alone = figures["rates"][OURS["fp32"]]["1"]
        gains = [
            entry["mixed_decode"] / first["decode"] for entry, first in zip(figures["mixed"], alone[::3], strict=True)
        ]
        differing = max(entry["mixed_differing"] for entry in figures["mixed"])
        limits += [
            common.Limit("16 of mixed lengths / one", statistics.median(gains), LEAST_BATCH_GAIN, at_least=True),
            common.Limit("answers that differ from those alone", differing, 0),
        ]
    result = {"benchmark": "generate", **figures, "ratios": found, "llama_cpp": llama, "machine": facts}
    return common.finish(result, limits, options.require)


def measure(workers: Mapping[str, common.Worker], rounds: int, bandwidth: Callable[[], dict[str, Any]]) -> Figures:
    """Ask all engines in turn.

    Returns:
        `rates`: by engine and batch, what each answer said; `mixed`: of each round; `bytes_per_second`: of memory.
    """
    rates: Any = {name: {str(batch): [] for batch in BATCHES} for name in workers}
    mixed, bandwidths = [], []
    for number in range(rounds):
        bandwidths.append(bandwidth()["bytes_per_second"])
        for batch in _ROUND:
            for name, worker in workers.items():
                rates[name][str(batch)].append(worker.ask({"batch": batch}))
        if OURS["fp32"] in workers:
            mixed.append(workers[OURS["fp32"]].ask({"mixed": number, "come_and_go": number == 0}))
        print(f"  round {number + 1}: " + ", ".join(f"{name} {_last(rates[name])}" for name in workers), flush=True)
    return {"rates": rates, "mixed": mixed, "bytes_per_second": statistics.median(bandwidths)}


def make_engines(options: argparse.Namespace, folder: Path) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """By name: the interpreter, the module of bench/generating and its options. Makes the models that are missing."""
    common_options = {
        "threads": options.threads,
        "most_prompts": max(BATCHES),
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "vocabulary": models.SHAPE["vocab_size"],
    }
    model, bundle = folder / "model", folder / "bundle"
    models.make_model(model)
    engines: dict[str, tuple[str, str, dict[str, Any]]] = {}

    def wanted(name: str) -> bool:
        return options.only is None or name in options.only

    for variant, name in OURS.items():
        if wanted(name):
            models.make_bundle(model, bundle)
            files = [*(bundle / variant).iterdir()]
            request = {"folder": str(bundle), "variant": variant, "bytes": sum(file.stat().st_size for file in files)}
            engines[name] = (sys.executable, "bundle", request)
    for precision in ("fp32", "int4"):
        if wanted(name := f"genai {precision}"):
            place = folder / f"genai-{precision}"
            models.make_genai(options.python, model, place, precision)
            engines[name] = (options.python, "genai", {"folder": str(place), "bytes": _weights_in(place)})
    for kind in models.GGUF_TYPES:
        if wanted(name := f"llama.cpp {kind}"):
            models.make_gguf(options.python, model, folder / "f32.gguf")
            models.make_gguf(options.python, model, file := folder / f"{kind}.gguf")
            engines[name] = (options.python, "llama_cpp", {"folder": str(file), "bytes": file.stat().st_size})
    if wanted("PyTorch"):
        engines["PyTorch"] = (sys.executable, "pytorch", {"folder": str(model), "bytes": _weights_in(model)})
    if not engines:
        raise common.BadInputError(f"--only {' '.join(options.only)}: there is no such engine")
    ordered = ((name, engines[name]) for name in NEIGHBOURS if name in engines)
    return {name: (python, module, common_options | request) for name, (python, module, request) in ordered}


def ratio(figures: Figures, one: str, other: str, figure: str) -> float | None:
    """The median of one engine's tokens per second over another's, one request at a time."""
    rates = figures["rates"]
    if one not in rates or other not in rates:
        return None
    pairs = zip(rates[one]["1"], rates[other]["1"], strict=True)
    return statistics.median([float(first[figure] / second[figure]) for first, second in pairs])


def show(figures: Figures, engines: dict[str, tuple[str, str, dict[str, Any]]]) -> None:
    """The medians as a table."""
    bandwidth = figures["bytes_per_second"]
    print(f"\nmemory bandwidth {bandwidth / 1e9:.1f} GB/s; medians, tokens per second of all rows together")
    heads = [f"decode {batch:>2}" for batch in BATCHES] + [f"prefill {batch:>2}" for batch in BATCHES]
    print(f"{'':<16}" + "".join(f"{head:>12}" for head in heads) + f"{'first, ms':>12}{'peak, MB':>10}{'of bound':>10}")
    for name, by_batch in figures["rates"].items():
        rates = [
            statistics.median(entry[figure] for entry in by_batch[str(batch)])
            for figure in ("decode", "prefill")
            for batch in BATCHES
        ]
        first = statistics.median(entry["first_seconds"] for entry in by_batch["1"])
        bound = rates[0] * engines[name][2]["bytes"] / bandwidth
        line = "".join(f"{rate:12.0f}" for rate in rates)
        print(f"{name:<16}{line}{1000 * first:12.0f}{by_batch['1'][0]['peak_mb']:10.0f}{bound:10.0%}")
    if figures["mixed"]:
        together, alone = (figures["mixed"][0][f"mixed_{name}"] for name in ("together", "alone"))
        print(f"requests of mixed lengths that come and go, prompts included: {together:.0f}, one by one {alone:.0f}")


def _weights_in(folder: Path) -> int:
    names = ("*.safetensors", "*.onnx", "*.onnx.data")
    return sum(file.stat().st_size for pattern in names for file in folder.glob(pattern))


def _last(by_batch: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    return "/".join(f"{by_batch[str(batch)][-1]['decode']:.0f}" for batch in BATCHES)


def _threads(options: argparse.Namespace) -> dict[str, int]:
    return {"threads": options.threads}


if __name__ == "__main__":
    sys.exit(main())
