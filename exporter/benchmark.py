"""The step that measures: the reference and every variant, on texts of the evaluation or of the project's own set."""

from __future__ import annotations

import dataclasses

from onnxpress.exporter.baseline import baseline_command
from onnxpress.exporter.source import Source
from onnxpress.exporter.state import State
from onnxpress.runtime.measuring import FULL, QUICK, variant_command
from onnxpress.runtime.measuring import measure as measure_processes
from onnxpress.runtime.timed_texts import make_workload
from onnxpress.runtime.tokenizer import Tokenizer

BASELINE = "PyTorch eager"
"""The reference's row in the report, unless it is an ONNX file."""


def measure(state: State) -> State:
    """Latency, throughput, memory and cold start of every variant that passed, and of the reference."""
    state = dataclasses.replace(state, cached=False)
    if state.config.measure == "none":
        return state
    assert state.facts is not None
    settings = state.facts.settings
    tokenizer = Tokenizer(state.folder / settings.tokenizer.file, settings.tokenizer)
    workload, facts = make_workload(tokenizer, settings, state.evaluation.texts if state.evaluation else None)
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
    provider = "CPUExecutionProvider" if state.config.target == "cpu" else state.config.target
    facts |= {"mode": state.config.measure, "rounds": plan.rounds, "threads": state.threads, "provider": provider}
    return dataclasses.replace(state, measurements=measurements, workload_facts=facts)


def baseline_name(source: Source) -> str:
    """What the reference is called in the report."""
    return BASELINE if source.onnx is None else source.reference
