"""The step that measures: the reference and every variant, on texts of the evaluation or of the project's own set."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from onnxpress.exporter.baseline import baseline_command
from onnxpress.exporter.recipe import recipes_folder
from onnxpress.exporter.source import Source
from onnxpress.exporter.state import State
from onnxpress.runtime.evaluation import read_evaluation
from onnxpress.runtime.measuring import FULL, QUICK, Workload, variant_command
from onnxpress.runtime.measuring import measure as measure_processes
from onnxpress.runtime.tokenizer import Tokenizer

BASELINE = "PyTorch eager"
"""The reference's row in the report, unless it is an ONNX file."""
_LENGTHS = (16, 64, 256)
_MIXED_TEXTS = 256
_FILLER = "the order was sent to the old address and came back after two weeks so we called again"


def measure(state: State) -> State:
    """Latency, throughput, memory and cold start of every variant that passed, and of the reference."""
    state = dataclasses.replace(state, cached=False)
    if state.config.measure == "none":
        return state
    workload, facts = _workload(state)
    # The graph written from an ONNX file does the pooling that the file leaves to its caller.
    graph = state.traced if state.source.onnx is not None and state.task == "feature-extraction" else None
    baseline = baseline_command(state.source, state.task, state.config, state.threads, graph)
    commands = {baseline_name(state.source): baseline}
    for variant in state.variants:
        if variant.status == "passed":
            commands[variant.name] = variant_command(state.folder, variant.name, state.threads)
    plan = QUICK if state.config.measure == "quick" else FULL
    measurements = measure_processes(
        commands, workload, plan, lambda detail, fraction: state.progress("measure", detail, fraction)
    )
    facts |= {"mode": state.config.measure, "rounds": plan.rounds, "threads": state.threads}
    return dataclasses.replace(state, measurements=measurements, workload_facts=facts)


def _workload(state: State) -> tuple[Workload, dict[str, Any]]:
    assert state.facts is not None
    settings = state.facts.settings.tokenizer
    tokenizer = Tokenizer(Path(state.folder / settings.file), settings)
    texts = state.evaluation.texts if state.evaluation else own_texts()
    mixed = random.Random(0).sample(texts, min(_MIXED_TEXTS, len(texts)))
    lengths = [len(encoding) for encoding in tokenizer.encode(mixed)]
    sizes = sorted({min(size, settings.max_length) for size in _LENGTHS})
    workload = Workload(short={size: text_of(tokenizer, size) for size in sizes}, mixed=mixed)
    return workload, {
        "texts": len(mixed),
        "tokens_mean": round(sum(lengths) / len(lengths), 1),
        "tokens_max": max(lengths),
        "provider": "CPUExecutionProvider" if state.config.target == "cpu" else state.config.target,
    }


def baseline_name(source: Source) -> str:
    """What the reference is called in the report."""
    return BASELINE if source.onnx is None else source.reference


def own_texts() -> list[str]:
    """The sentences this project ships."""
    return read_evaluation([recipes_folder() / "sentence_pairs.tsv"], "feature-extraction").texts


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """A text of as many tokens as asked for, or the nearest below that whole words can make."""
    words, chosen = _FILLER.split(), list[str]()
    while len(chosen) < tokens:
        chosen.append(words[len(chosen) % len(words)])
    while len(chosen) > 1 and len(tokenizer.encode([" ".join(chosen)])[0]) >= tokens:
        if len(tokenizer.encode([" ".join(chosen[:-1])])[0]) < tokens:
            break
        chosen.pop()
    return " ".join(chosen)
