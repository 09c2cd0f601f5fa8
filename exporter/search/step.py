"""The step itself: what is searched among, and what becomes of what was found."""

from __future__ import annotations

import dataclasses
import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.search.account import search_document, sensitivity_document
from onnxpress.exporter.search.plan import Outcome, Trial, run_plan
from onnxpress.exporter.search.splits import Splits, split
from onnxpress.exporter.search.trials import STATIC, Budget, Limit, TrialBench
from onnxpress.exporter.state import Graph, State, VariantState
from onnxpress.quantize import int8_static
from onnxpress.quantize.graphs import PassReport
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, candidates
from onnxpress.quantize.int8_static import Int8StaticConfig
from onnxpress.quantize.migration import MigrationConfig
from onnxpress.quantize.mixed import MixedConfig, mix_precisions, quantized_nodes
from onnxpress.runtime import hardware
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.machine import describe_machine

MIXED = "mixed"
"""The variant made of several precisions."""
_QUANTIZED = ("int8", STATIC, "int4")


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
    try:
        with quiet(state.verbose):
            if state.task != "text-generation" and STATIC not in parts and (graph := bench.add_static(_static())):
                parts[STATIC] = _Part(STATIC, graph)
            uniform = {
                name: dict.fromkeys(quantized_nodes(base, part.graph.path), name) for name, part in parts.items()
            }
            outcome = run_plan(bench, uniform)
            bench.finish()
    finally:
        bench.clear()
    _check_float32(bench, splits, limit)
    variant, variants = _apply(state, parts, bench, outcome)
    return dataclasses.replace(
        state,
        variants=variants,
        rejected=_rejected(parts, bench, outcome, variants),
        search=search_document(state, bench, splits, limit, budget, outcome, variant),
        sensitivity=sensitivity_document(base, bench.sensitivities),
        cached=False,
    )


def _static() -> Int8StaticConfig:
    """How static int8 is made for the search: with scales migrated, which helps most where it is needed."""
    here = describe_machine()
    kinds, signed = hardware.int8_kinds(here), hardware.signed_activations(here)
    (config,) = int8_static.candidates(kinds, signed, methods=("minmax",), migrations=(MigrationConfig(),))
    return config


def _parts(state: State) -> dict[str, _Part]:
    """Quantized graphs by precision: those of the variants, each kind of int8 under a name of its own."""
    found: dict[str, _Part] = {}
    for variant in state.variants:
        if variant.status == "failed" or variant.precision not in _QUANTIZED:
            continue
        for index, graph in enumerate((variant.graph, *variant.alternatives)):
            # Where there is nothing to tame, taming changes nothing.
            if not any(_is_same(graph, part.graph) for part in found.values()):
                found[_precision(variant, graph, index)] = _Part(variant.name, graph)
    return found


def _is_same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs of a pass are the same files."""
    return all(
        filecmp.cmp(graph.path.with_name(name), other.path.with_name(name), shallow=False)
        for name in (graph.path.name, f"{graph.path.name}.data")
        if graph.path.with_name(name).exists() and other.path.with_name(name).exists()
    )


_KINDS = {config.label: config for config in candidates((hardware.FULL, *hardware.SAFE))}


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
    state: State, parts: Mapping[str, _Part], bench: TrialBench, found: Outcome
) -> tuple[str | None, tuple[VariantState, ...]]:
    """The variant that is the accepted graph, and all variants."""
    held = {trial.name: trial.holds for trial in bench.trials if trial.name in parts}
    failed = {verdict["trial"] for verdict in bench.verdicts if not verdict["holds"]}
    good = {name for name, holds in held.items() if holds and name not in failed}
    variants = [_reordered(variant, parts, good) for variant in state.variants]
    trial = found.accepted
    if trial is None:
        return None, tuple(variants)
    if trial.name in parts:
        winner = parts[trial.name]
        if all(variant.name != winner.variant for variant in variants):
            variants.append(VariantState(winner.variant, winner.variant, state.config.target, winner.graph))
        chosen = [_first(variant, winner.graph) if variant.name == winner.variant else variant for variant in variants]
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
