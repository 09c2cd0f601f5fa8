"""The step itself: what is searched among, and what becomes of what was found."""

from __future__ import annotations

import dataclasses
import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter.graph_modules import WRAPPER
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.search.account import search_document, sensitivity_document, unsearched_document
from onnxpress.exporter.search.limits import Budget, Limit
from onnxpress.exporter.search.plan import Outcome, Trial, run_plan
from onnxpress.exporter.search.splits import Splits, split
from onnxpress.exporter.search.trials import TrialBench
from onnxpress.exporter.state import Graph, State, VariantState
from onnxpress.quantize.embedding_tables import quantize_embedding_tables
from onnxpress.quantize.graphs import PassReport
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, candidates
from onnxpress.quantize.int8_static import candidates as candidates_static
from onnxpress.quantize.int8_static import quantize_int8_static
from onnxpress.quantize.migration import MigrationConfig
from onnxpress.quantize.mixed import MixedConfig, mix_precisions, quantized_nodes
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.machine import describe_machine

MIXED = "mixed"
"""The variant made of several precisions."""
STATIC, TABLES = "int8-static", "int8-tables"
"""Graphs that the search makes itself: static int8, where no variant is one, and embedding tables alone."""
_MIGRATION = 0.8  # 0.5 left errors of 0.22 of the scale on a MiniLM with channels enlarged 100 times, this 0.08
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
        InvalidInputError: float32 itself does not reach the metric.
    """
    parts = _parts(state)
    if not state.searches or state.evaluation is None or not parts:
        return state
    budget = Budget(state.config.search_budget)
    limit = Limit(state.config.max_accuracy_drop, state.config.min_metric)
    splits = split(state.evaluation)
    if splits is None:
        return dataclasses.replace(state, search=unsearched_document(state, limit))
    bench = TrialBench(state, {name: part.graph.path for name, part in parts.items()}, splits, limit, budget)
    assert state.fused is not None
    base = state.fused.path
    try:
        with quiet(state.verbose):
            outcome = run_plan(bench, lambda: _uniform_assignments(state, bench, parts))
            bench.finish()
    finally:
        bench.clear()
    _check_float32(bench, splits, limit)
    variant, variants = _apply(state, parts, bench, outcome)
    return dataclasses.replace(
        state,
        variants=variants,
        rejected=_rejected(parts, bench, variants),
        search=search_document(state, bench, splits, limit, budget, outcome, variant),
        sensitivity=sensitivity_document(base, bench.sensitivities, "" if state.task == "text-generation" else WRAPPER),
        cached=False,
    )


def _uniform_assignments(state: State, bench: TrialBench, parts: dict[str, _Part]) -> dict[str, dict[str, str]]:
    """The mixtures that are the graphs of one precision, after those that the search makes itself have been made."""
    assert state.fused is not None
    base = state.fused.path
    tables = _add_parts(state, bench, parts) if state.task != "text-generation" else {}
    return {
        name: {**tables, **dict.fromkeys(quantized_nodes(base, part.graph.path), name)} for name, part in parts.items()
    }


def _add_parts(state: State, bench: TrialBench, parts: dict[str, _Part]) -> dict[str, str]:
    """Make the graphs of an encoder that are searched among and are no variants; returns the lookups in embedding
    tables and their precision, where these are to be of few bits."""
    assert state.fused is not None
    base, cases = state.fused.path, [case.feeds for case in state.cases]
    if STATIC not in parts:
        (config,) = candidates_static(describe_machine(), ("minmax",), (MigrationConfig(_MIGRATION),))

        def write(path: Path, feeds: Sequence[Any]) -> PassReport:
            # Ranges of real texts alone would cut off what is in the gate's own inputs.
            return quantize_int8_static(base, path, config, [*feeds, *cases])

        if graph := bench.add_part(STATIC, dataclasses.asdict(config), write):
            parts[STATIC] = _Part(STATIC, graph)
    if state.config.objective not in ("size", "memory") or state.config.embedding_bits is not None:
        return {}
    tables = bench.add_part(TABLES, None, lambda path, feeds: quantize_embedding_tables(base, path))
    return {} if tables is None else dict.fromkeys(quantized_nodes(base, tables.path), TABLES)


def _parts(state: State) -> dict[str, _Part]:
    """Quantized graphs by precision: those of the variants, each kind of int8 under a name of its own."""
    named = [
        (_precision(variant, graph, index), _Part(variant.name, graph))
        for variant in state.variants
        if variant.status != "failed" and variant.precision in _QUANTIZED
        # Of others than dynamic int8 the first graph is the best one.
        for index, graph in enumerate((variant.graph, *(variant.alternatives if variant.precision == "int8" else ())))
    ]
    found: dict[str, _Part] = {}
    for name, part in sorted(named, key=lambda entry: len(entry[0])):  # int8 before int8-tamed
        # Where there is nothing to tame, taming changes nothing.
        if not any(_is_same(part.graph, known.graph) for known in found.values()):
            found[name] = part
    return found


def _is_same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs of a pass are the same files."""
    return all(
        filecmp.cmp(graph.path.with_name(name), other.path.with_name(name), shallow=False)
        for name in (graph.path.name, f"{graph.path.name}.data")
        if graph.path.with_name(name).exists() and other.path.with_name(name).exists()
    )


def _precision(variant: VariantState, graph: Graph, index: int) -> str:
    """A short name of a variant's graph."""
    if variant.precision != "int8" or index >= len(graph.candidates):
        return variant.precision
    label = graph.candidates[index]["name"]
    return variant.precision + next((_kind(one) for one in candidates(describe_machine()) if one.label == label), "")


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
            f"min_metric is {limit.min_metric:g}, and the model has {reached:.2f} in float32 on the part of the "
            "evaluation that is searched with: ask for less"
        )


def _apply(
    state: State, parts: Mapping[str, _Part], bench: TrialBench, found: Outcome
) -> tuple[str | None, tuple[VariantState, ...]]:
    """The variant that is the accepted graph, and all variants."""
    tried = _uniform(bench)
    good = {name for name, trial in tried.items() if trial.holds and name not in _failed(bench)}
    variants = [_reordered(variant, parts, good) for variant in state.variants]
    trial = found.accepted
    if trial is None:
        return None, tuple(variants)
    if trial.name in tried:
        winner = parts[trial.name]
        if all(variant.name != winner.variant for variant in variants):
            variants.append(VariantState(winner.variant, winner.variant, state.config.target, winner.graph))
        chosen = [_first(variant, winner.graph) if variant.name == winner.variant else variant for variant in variants]
        return winner.variant, tuple(chosen)
    graph = _mixed_graph(state, bench.parts, trial)
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


def _rejected(parts: Mapping[str, _Part], bench: TrialBench, variants: Sequence[VariantState]) -> frozenset[str]:
    """Variants that must not become the default: the graph that would serve did not hold on a half of the examples."""
    bad = {name for name, trial in _uniform(bench).items() if not trial.holds or name in _failed(bench)}
    paths = {parts[name].graph.path for name in bad}
    return frozenset(variant.name for variant in variants if variant.graph.path in paths)


def _uniform(bench: TrialBench) -> dict[str, Trial]:
    """Trials that are the graphs of variants, by precision."""
    return {trial.name: trial for trial in bench.trials if set(trial.assignment.values()) == {trial.name}}


def _failed(bench: TrialBench) -> set[str]:
    """Names of trials that did not hold on the examples held out."""
    return {verdict["trial"] for verdict in bench.verdicts if not verdict["holds"]}


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
