"""The step itself: what is searched among, and what becomes of what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxpress.exporter.graph_names import MODULE_KEY
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.search.plan import Outcome, Trial, run_plan
from onnxpress.exporter.search.splits import Splits, split
from onnxpress.exporter.search.trials import Budget, Limit, TrialBench
from onnxpress.exporter.state import Graph, State, VariantState
from onnxpress.quantize.graphs import PassReport
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, candidates
from onnxpress.quantize.mixed import FLOAT32, MixedConfig, mix_precisions, quantized_nodes
from onnxpress.quantize.sensitivity import Sensitivity
from onnxpress.quantize.splicing import open_part, weighted_nodes
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError

MIXED = "mixed"
"""The variant made of several precisions."""
_QUANTIZED = ("int8", "int8-static", "int4")


@dataclasses.dataclass(frozen=True)
class _Part:
    """A quantized graph to take forms of nodes from."""

    variant: str
    """The variant it is a graph of."""
    graph: Graph


def search(state: State) -> State:
    """Find the graph that costs least by the objective and holds the accuracy asked for.

    Raises:
        InvalidInputError: the evaluation is too small to be halved, or float32 itself does not reach the metric.
    """
    parts = _parts(state)
    if not state.searches or state.evaluation is None or not parts:
        return state
    budget = Budget(state.config.search_budget)
    splits = split(state.evaluation)
    limit = Limit(state.config.max_accuracy_drop, state.config.min_metric)
    bench = TrialBench(state, {name: part.graph.path for name, part in parts.items()}, splits, limit, budget)
    assert state.fused is not None
    base = state.fused.path
    uniform = {name: dict.fromkeys(quantized_nodes(base, part.graph.path), name) for name, part in parts.items()}
    try:
        with quiet(state.verbose):
            outcome = run_plan(bench, uniform)
            bench.finish()
    finally:
        bench.clear()
    _check_float32(bench, splits, limit)
    variant, variants = _apply(state, parts, uniform, bench, outcome)
    return dataclasses.replace(
        state,
        variants=variants,
        rejected=_rejected(parts, bench, outcome, variants),
        search=_document(state, bench, splits, limit, budget, outcome, variant),
        sensitivity=_sensitivity(base, bench.sensitivities),
        cached=False,
    )


def _parts(state: State) -> dict[str, _Part]:
    """Quantized graphs by precision: those of the variants, each kind of int8 under a name of its own."""
    found = {}
    for variant in state.variants:
        if variant.status == "failed" or variant.precision not in _QUANTIZED:
            continue
        for index, graph in enumerate((variant.graph, *variant.alternatives)):
            found[_precision(variant, graph, index)] = _Part(variant.name, graph)
    return found


_KINDS = {config.label: config for able in (True, False) for config in candidates(able)}


def _precision(variant: VariantState, graph: Graph, index: int) -> str:
    """A short name of a variant's graph."""
    config = _KINDS.get(graph.candidates[index]["name"]) if index < len(graph.candidates) else None
    return variant.precision + _kind(config) if config else variant.precision


def _kind(config: Int8DynamicConfig) -> str:
    return f"{'' if config.signed else '-unsigned'}{'-7bit' * config.reduce_range}{'-tamed' * bool(config.outliers)}"


def _check_float32(bench: TrialBench, splits: Splits, limit: Limit) -> None:
    """
    Raises:
        InvalidInputError: the metric asked for is more than the model has in float32.
    """
    if not bench.trials or limit.min_metric is None:
        return
    reached, evaluation = bench.float32["metric"], splits.search
    if not Limit(None, limit.min_metric).holds(evaluation, reached, reached):
        raise InvalidInputError(
            f"min_metric is {limit.min_metric:g}, and the model has {reached:.2f} in float32 on the half of the "
            "evaluation that is searched with: ask for less"
        )


def _apply(
    state: State, parts: Mapping[str, _Part], uniform: Mapping[str, Mapping[str, str]], bench: TrialBench, found: Outcome
) -> tuple[str | None, tuple[VariantState, ...]]:
    """The variant that is the accepted graph, and all variants."""
    held = {trial.name: trial.holds for trial in bench.trials if trial.name in parts}
    failed = {verdict["trial"] for verdict in bench.verdicts if not verdict["holds"]}
    good = {name for name, holds in held.items() if holds and name not in failed}
    variants = [_reordered(variant, parts, good) for variant in state.variants]
    trial = found.accepted
    if trial is None:
        return None, tuple(variants)
    if trial.name in uniform:
        winner = parts[trial.name]
        chosen = [
            _first(variant, winner.graph) if variant.name == winner.variant else variant for variant in variants
        ]
        return winner.variant, tuple(chosen)
    graph = _mixed_graph(state, {name: part.graph.path for name, part in parts.items()}, trial)
    return MIXED, (*variants, VariantState(MIXED, MIXED, state.config.target, graph))


def _reordered(variant: VariantState, parts: Mapping[str, _Part], good: set[str]) -> VariantState:
    """A variant whose first graph is one that holds, where the search has found one among several."""
    graphs = [part.graph for name, part in parts.items() if part.variant == variant.name and name in good]
    return _first(variant, graphs[0]) if graphs else variant


def _first(variant: VariantState, graph: Graph) -> VariantState:
    """The variant with this graph before its others."""
    graphs = (variant.graph, *variant.alternatives)
    if len(graphs) == 1:
        return variant
    index = [other.path for other in graphs].index(graph.path)
    order = [index, *(other for other in range(len(graphs)) if other != index)]
    listed = tuple(graph.candidates[place] for place in order) if len(graph.candidates) == len(graphs) else ()
    moved = tuple(dataclasses.replace(graphs[place], candidates=listed or graph.candidates) for place in order)
    return dataclasses.replace(variant, graph=moved[0], alternatives=moved[1:])


def _rejected(
    parts: Mapping[str, _Part], bench: TrialBench, found: Outcome, variants: Sequence[VariantState]
) -> frozenset[str]:
    """Variants that must not become the default: the graph that would serve did not hold on a half of the examples."""
    failed = {verdict["trial"] for verdict in bench.verdicts if not verdict["holds"]}
    failed |= {trial.name for trial in bench.trials if not trial.holds}
    paths = {part.graph.path for name, part in parts.items() if name in failed}
    return frozenset(variant.name for variant in variants if variant.graph.path in paths)


def _mixed_graph(state: State, parts: Mapping[str, Path], trial: Trial) -> Graph:
    """The accepted mixture in the cache, from where it goes through the gate."""
    assert state.fused is not None
    base = state.fused

    def make(folder: Path) -> dict[str, Any]:
        config = MixedConfig(trial.assignment)
        return {"report": dataclasses.asdict(mix_precisions(base.path, parts, config, folder / "model.onnx"))}

    root = state.cache.root
    key = {
        "base": str(base.path.relative_to(root)),
        "parts": {name: str(path.relative_to(root)) for name, path in parts.items()},
        "assignment": sorted(trial.assignment.items()),
    }
    folder, data, _ = state.cache.get(MIXED, key, make)
    return Graph(folder / "model.onnx", base.session, (*base.passes, decode(PassReport, data["report"])))


def _document(
    state: State,
    bench: TrialBench,
    splits: Splits,
    limit: Limit,
    budget: Budget,
    outcome: Outcome,
    variant: str | None,
) -> dict[str, Any]:
    """The key `search` of the report (docs/bundle.md)."""
    assert state.fused is not None
    evaluation = splits.search
    before = bench.float32["metric"] if bench.trials else None
    nodes = list(weighted_nodes(open_part(state.fused.path)))
    accepted = outcome.accepted
    return {
        "limit": {"max_accuracy_drop": limit.max_drop, "min_metric": limit.min_metric},
        "objective": state.config.objective,
        "budget_seconds": budget.seconds,
        "seconds": round(budget.spent, 1),
        "ended": outcome.ended,
        "splits": {"search": len(evaluation.examples), "held_out": len(splits.held_out.examples)},
        "float32": {"metric": before, "milliseconds": bench.float32["milliseconds"]} if bench.trials else None,
        "trials": [_trial(trial, nodes, before, splits) for trial in bench.trials],
        "accepted": accepted and {"trial": accepted.name, "variant": variant},
        "held_out": _held_out(bench, accepted),
        "sentence": _sentence(bench, limit, splits, outcome, variant),
    }


def _trial(trial: Trial, nodes: Sequence[str], before: float | None, splits: Splits) -> dict[str, Any]:
    figures = trial.figures
    after = figures["metric"]
    drop = None if before is None or after is None else splits.search.loss(before, after) + 0.0
    counts: dict[str, int] = {}
    for precision in trial.assignment.values():
        counts[precision] = counts.get(precision, 0) + 1
    kept = [node for node in nodes if node not in trial.assignment]
    return {
        "name": trial.name,
        "nodes": counts | {FLOAT32: len(kept)},
        "float32_nodes": kept,
        "divergence": figures["divergence"],
        "metric": after,
        "drop": drop,
        "milliseconds": figures["milliseconds"],
        "speedup": 1 / figures["milliseconds_ratio"],
        "size_bytes": figures["size_bytes"],
        "peak_memory_bytes": figures["peak_memory_bytes"],
        "holds": trial.holds,
    }


def _held_out(bench: TrialBench, accepted: Trial | None) -> dict[str, Any] | None:
    """What the check on the examples held out gave for the accepted trial, else for the last one; and all looks."""
    if not bench.verdicts:
        return None
    last = bench.verdicts[-1]
    parts = last["parts"] or {"search": None, "held_out": None}
    return {
        "trial": last["trial"],
        "holds": last["holds"],
        "failure": last["failure"],
        "search": parts["search"],
        "held_out": parts["held_out"],
        "looks": sum(verdict["parts"] is not None for verdict in bench.verdicts),
    }


def _sentence(bench: TrialBench, limit: Limit, splits: Splits, outcome: Outcome, variant: str | None) -> str:
    """What came of it, for people."""
    asked = limit.words(splits.search)
    if outcome.accepted is not None:
        gain = 1 / outcome.accepted.figures["milliseconds_ratio"]
        return f"{variant} {asked} on both halves of the evaluation, at {gain:.2f} times the speed of float32."
    cut = {"budget": " within the time it had", "interrupt": " before it was interrupted", "done": ""}[outcome.ended]
    if not bench.trials:
        return f"The search could try nothing{cut}: float32 is the answer."
    return f"Of {len(bench.trials)} graphs tried none {asked} and is cheaper than float32{cut}: float32 is the answer."


def _sensitivity(base: Path, measured: Sequence[Sensitivity]) -> dict[str, Any] | None:
    """The key `sensitivity` of the report (docs/bundle.md)."""
    if not measured:
        return None
    nodes = weighted_nodes(open_part(base))
    return {
        "inputs": measured[0].inputs,
        "precisions": [
            {
                "precision": found.precision,
                "divergence": found.divergence,
                "seconds": round(found.seconds, 1),
                "nodes": [
                    dataclasses.asdict(node) | {"module": _module(nodes[node.node])} for node in found.nodes
                ],
            }
            for found in measured
        ],
    }


def _module(node: onnx.NodeProto) -> str | None:
    return next((entry.value for entry in node.metadata_props if entry.key == MODULE_KEY), None)
