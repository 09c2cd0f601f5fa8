"""The step that verifies: every variant against PyTorch, in the session that will serve it; then its accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter import bundling
from onnxpress.exporter.building import real_cases
from onnxpress.exporter.config import ExportConfig, Thresholds
from onnxpress.exporter.divergence import first_divergence
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.state import Graph, State, VariantState
from onnxpress.quantize.graphs import check_structure
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import OnnxpressError, VerificationError
from onnxpress.runtime.evaluation import Evaluation, Evidence, Interval, Scores, evaluate, paired_interval
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import SessionSettings, Tensor
from onnxpress.runtime.model import load
from onnxpress.runtime.providers import SHORT_NAMES, choose_providers, unusable_because
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import Parity, Run, check_parity
from onnxpress.runtime.verifying import run_of

DEFAULT_MAX_DROP = 1.0
"""Points of the evaluation's metric a variant may lose unless asked otherwise."""


def allowed_drop(config: ExportConfig) -> float | None:
    """Points that may be lost; None where only a least metric was asked for."""
    if config.max_accuracy_drop is None and config.min_metric is None:
        return DEFAULT_MAX_DROP
    return config.max_accuracy_drop


def verify(state: State) -> State:
    """Put every variant that passes into the staging folder.

    Raises:
        VerificationError: none passes.
    """
    state = _with_baseline_scores(state)
    variants = []
    for variant in state.variants:
        state.progress("verify", variant.name, None)
        variants.append(_verify_variant(state, variant))
    state = dataclasses.replace(state, variants=tuple(variants), cached=False)
    if all(variant.status == "failed" for variant in variants):
        reasons = "; ".join(f"{variant.name} {variant.failure}" for variant in variants)
        raise VerificationError(f"no variant passed the gate, so no bundle was written: {reasons}")
    bundling.write_manifest(state)
    return state


def _verify_variant(state: State, variant: VariantState) -> VariantState:
    """The variant with the first of its graphs that passes, or failed with the one that came closest."""
    if variant.status == "failed":  # it could not be made
        return variant
    failures = []
    for graph in (variant.graph, *variant.alternatives):
        tried = _try_graph(state, variant, graph)
        if tried.status != "failed":
            return tried
        failures.append(tried)
    bundling.remove_variant(state, variant.name)
    return max(failures, key=lambda failed: failed.parity.min_cosine if failed.parity else -1.0)


def _try_graph(state: State, variant: VariantState, graph: Graph) -> VariantState:
    """The variant made with `graph`, and the gate's verdict on it, from the cache where nothing has changed."""
    variant = dataclasses.replace(variant, graph=_mark_chosen(graph, variant))
    bundling.install_graph(state, variant.name, graph)

    def make(folder: Path) -> dict[str, Any]:
        tried = _judge(state, variant)
        return {name: value for name, value in dataclasses.asdict(tried).items() if name in _VERDICT}

    _, verdict, found = state.cache.get("verify", _verdict_key(state, variant), make)
    state.progress("verify", f"{variant.name}{', cached' if found else ''}", None)
    # A graph that fails may be infinitely far off, and of a single example nobody knows how far it may be.
    parity = verdict["parity"] and decode(Parity, verdict["parity"], finite=False)
    interval = verdict["accuracy_interval"] and decode(Interval, verdict["accuracy_interval"], finite=False)
    decoded = {"parity": parity, "accuracy_interval": interval, "notes": tuple(verdict["notes"])}
    return dataclasses.replace(variant, **{**verdict, **decoded})


_VERDICT = (
    "status", "failure", "parity", "first_divergence", "accuracy", "accuracy_interval", "metrics", "changed_answers",
    "notes",
)  # fmt: skip


def _verdict_key(state: State, variant: VariantState) -> dict[str, Any]:
    return {
        "graph": str(variant.graph.path.relative_to(state.cache.root)),
        "session": dataclasses.asdict(variant.graph.session),
        "variant": (variant.precision, variant.target, unusable_because(SHORT_NAMES[variant.target])),
        "thresholds": dataclasses.asdict(state.config.thresholds or Thresholds()),
        "evaluation": state.evaluation and state.evaluation.sha256,
        "limit": (state.config.max_accuracy_drop, state.config.min_metric),
        "machine": (describe_machine().key(), state.threads),
    }


def _judge(state: State, variant: VariantState) -> VariantState:
    """The gate: parity with the reference, then accuracy."""
    kind, threshold = (state.config.thresholds or Thresholds()).for_precision(variant.precision, state.task)
    try:
        run, compared, notes = _runner(state, variant, variant.graph)
    except OnnxpressError as error:
        return dataclasses.replace(variant, status="failed", failure=str(error))
    with quiet(state.verbose):
        parity = check_parity(run, state.cases, compared, kind, threshold)
    variant = dataclasses.replace(variant, parity=parity, notes=(*_notes(state, variant), *notes))
    if (failure := parity.failure(state.source.reference)) is not None:
        found = first_divergence(state, variant.graph.path, real_cases(state)[0].feeds)
        return dataclasses.replace(variant, status="failed", failure=failure, first_divergence=found)
    if unusable_because(SHORT_NAMES[variant.target]):
        variant = dataclasses.replace(variant, status="unverified")
    return variant if notes else _check_accuracy(state, variant)


def _check_accuracy(state: State, variant: VariantState) -> VariantState:
    """The variant with its accuracy, failed if it lost too much."""
    if state.evaluation is None or state.baseline_scores is None:
        return variant
    alone = dataclasses.replace(state, variants=(variant,), default=variant.name)
    bundling.write_manifest(alone)
    with quiet(state.verbose):
        providers = None if variant.status == "passed" else "cpu"
        scores = evaluate(load(state.folder, providers=providers, threads=state.threads), state.evaluation)
    allowed, least = allowed_drop(state.config), state.config.min_metric
    before, after = state.baseline_scores.primary, scores.primary
    drop = state.evaluation.loss(before, after)
    variant = dataclasses.replace(
        variant,
        accuracy=after,
        accuracy_interval=paired_interval(state.evaluation, state.baseline_scores, scores),
        metrics=scores.metrics,
        changed_answers=_changed_answers(state.baseline_scores, scores),
    )
    if least is not None and not state.evaluation.loss(least, after) <= 0:
        return dataclasses.replace(variant, status="failed", failure=f"has {after:.2f}, asked for {least:g}")
    if allowed is not None and not drop <= allowed:  # also when the accuracy is not a number
        figures = f"{after:.2f} against {before:.2f} of {state.source.reference}"
        failure = f"loses {state.evaluation.amount(drop, '.2f')} ({figures}), allowed {allowed:g}"
        return dataclasses.replace(variant, status="failed", failure=failure)
    return variant


def _changed_answers(before: Scores, after: Scores) -> int | None:
    if not before.predictions:
        return None
    return sum(one != other for one, other in zip(before.predictions, after.predictions, strict=True))


def _runner(state: State, variant: VariantState, graph: Graph) -> tuple[Run, Sequence[Tensor], tuple[str, ...]]:
    """What runs the graph, what is compared of it, and what the report must say about it: the target's provider where
    this machine has it, else the CPU's kernels, else - the CPU has none for an operator - the traced graph, after a
    look at the structure.

    Raises:
        OnnxpressError: the graph does not load.
    """
    missing = unusable_because(SHORT_NAMES[variant.target])
    providers = choose_providers("cpu" if missing else variant.target)
    notes: tuple[str, ...] = ()
    try:
        session = make_session(graph.path, graph.session, settings=ServingSettings(state.threads), providers=providers)
    except OnnxpressError:
        if not missing:
            raise
        check_structure(graph.path)
        assert state.traced is not None
        session = make_session(state.traced, SessionSettings(), settings=ServingSettings(state.threads))
        notes = ("The CPU has no kernel for one of its operators: the traced graph was compared in its place.",)
    assert state.facts is not None
    return *run_of(session, state.facts.settings, state.facts.outputs), notes


def _with_baseline_scores(state: State) -> State:
    """The state with the reference's own figures on the evaluation files."""
    if state.evaluation is None:
        return state
    evaluation: Evaluation = state.evaluation

    def make(folder: Path) -> dict[str, Any]:
        state.progress("verify", f"the accuracy of {state.source.reference}", None)
        with quiet(state.verbose):
            from onnxpress.exporter.baseline import load_baseline

            scores = evaluate(load_baseline(state.source, state.task, state.config), evaluation)
        return dataclasses.asdict(scores)

    key = {"files": state.source.files_sha256, "task": state.task, "evaluation": evaluation.sha256}
    _, data, _ = state.cache.get("accuracy", key, make)
    return dataclasses.replace(state, baseline_scores=_scores(data))


def _scores(data: dict[str, Any]) -> Scores:
    """Scores from their JSON form, in which tuples have become lists."""
    evidence = Evidence(data["evidence"]["kind"], _frozen(data["evidence"]["rows"]))
    return Scores(data["metrics"], tuple(_frozen(value) for value in data["predictions"]), evidence)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def _mark_chosen(graph: Graph, variant: VariantState) -> Graph:
    """The graph with its own entry among the candidates marked, where several kinds were timed."""
    if not graph.candidates or any("chosen" in candidate for candidate in graph.candidates):
        return graph
    position = (variant.graph, *variant.alternatives).index(graph)
    marked = tuple(candidate | {"chosen": index == position} for index, candidate in enumerate(graph.candidates))
    return dataclasses.replace(graph, candidates=marked)


def _notes(state: State, variant: VariantState) -> tuple[str, ...]:
    notes = []
    names = [candidate["name"] for candidate in variant.graph.candidates]
    chosen = next((candidate["name"] for candidate in variant.graph.candidates if candidate["chosen"]), None)
    if variant.precision == "int8" and chosen is not None and (faster := names[: names.index(chosen)]):
        notes.append(f"Faster, but too far from {state.source.reference}: {'; '.join(faster)}.")
    if variant.precision == "fp16" and variant.target == "cpu":
        notes.append("On CPU, fp16 saves disk space, not time: onnxruntime computes in float32 and converts.")
    if reason := unusable_because(SHORT_NAMES[variant.target]):
        notes.append(
            f"Not verified on {variant.target}: {reason}. The graph was compared with {state.source.reference} on the "
            "CPU's kernels; run `onnxpress verify` on the target machine."
        )
    return tuple(notes)
