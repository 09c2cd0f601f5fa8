"""The step that measures: the reference and every variant, on texts of the evaluation or of the project's own set."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter.baseline import baseline_command
from onnxpress.exporter.recipe import recipes_folder
from onnxpress.exporter.source import Source
from onnxpress.exporter.state import State
from onnxpress.runtime.evaluation import read_evaluation
from onnxpress.runtime.generation.rows import LEAST_SHARED
from onnxpress.runtime.generation.timing import POOL, WritingWorkload
from onnxpress.runtime.measuring import FULL, QUICK, Timed, Workload, variant_command
from onnxpress.runtime.measuring import measure as measure_processes
from onnxpress.runtime.tokenizer import Tokenizer

BASELINE = "PyTorch eager"
"""The reference's row in the report, unless it is an ONNX file."""
_LENGTHS = (16, 64, 256)
_MIXED_TEXTS = 256
_PROMPT_LENGTHS = (16, 128, 512)
_NEW_TOKENS = 64
_FILLER = "the order was sent to the old address and came back after two weeks so we called again"


def measure(state: State) -> State:
    """Latency, throughput, memory and cold start of every variant that passed, and of the reference."""
    state = dataclasses.replace(state, cached=False)
    if state.config.measure == "none":
        return state
    workload: Timed
    facts: dict[str, Any]
    workload, facts = _writing_workload(state) if state.task == "text-generation" else _workload(state)
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


def _writing_workload(state: State) -> tuple[WritingWorkload, dict[str, Any]]:
    assert state.facts is not None
    settings = state.facts.settings.tokenizer
    tokenizer = Tokenizer(Path(state.folder / settings.file), settings)
    new_tokens = min(_NEW_TOKENS, settings.max_length // 4)
    lengths = sorted({min(size, settings.max_length // 2) for size in _PROMPT_LENGTHS})
    made = prompts_of(tokenizer, lengths)
    prompts = {max(len(encoding) for encoding in tokenizer.encode(texts)): texts for texts in made}
    after = list(prompts)[len(prompts) // 2]
    return WritingWorkload(prompts, after, new_tokens), {
        "prompt_tokens": after,
        "new_tokens": new_tokens,
        "provider": "CPUExecutionProvider" if state.config.target == "cpu" else state.config.target,
    }


def baseline_name(source: Source) -> str:
    """What the reference is called in the report."""
    return BASELINE if source.onnx is None else source.reference


def own_texts() -> list[str]:
    """The sentences this project ships."""
    return read_evaluation([recipes_folder() / "sentence_pairs.tsv"], "feature-extraction").texts


def prompts_of(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[list[str]]:
    """POOL prompts for each number of tokens, with as many where that can be. All begin with other tokens, so that
    nothing of one is in the cache for another; a tokenizer that knows hardly any word gives fewer."""

    def count(words: Sequence[str]) -> int:
        return len(tokenizer.encode([" ".join(words)])[0])

    def of_length(opening: Sequence[str], tokens: int) -> str:
        words = [*opening, *itertools.islice(itertools.cycle(filler), tokens)]
        kept = max(3, bisect.bisect_right(range(len(words)), tokens, key=lambda number: count(words[:number])) - 1)
        words = words[:kept]
        while count([*words, "a"]) <= tokens:
            words.append("a")
        return " ".join(words)

    filler = _FILLER.split()
    openings: dict[tuple[int, ...], tuple[str, ...]] = {}
    for opening in itertools.permutations(dict.fromkeys(filler), 3):
        beginning = tuple(tokenizer.encode([" ".join([*opening, *filler])])[0].ids[:LEAST_SHARED])
        openings.setdefault(beginning, opening)
        if len(openings) == POOL * len(lengths):
            break
    chosen = list(openings.values())
    return [[of_length(opening, size) for opening in chosen[i :: len(lengths)]] for i, size in enumerate(lengths)]


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
