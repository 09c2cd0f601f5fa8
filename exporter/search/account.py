"""What a search tried and found, as the keys `search` and `sensitivity` of the report (docs/bundle.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter.graph_modules import modules_of
from onnxpress.exporter.search.limits import Budget, Limit
from onnxpress.exporter.search.plan import Outcome, Trial
from onnxpress.exporter.search.splits import Splits
from onnxpress.exporter.search.trials import TrialBench, finite
from onnxpress.exporter.state import State
from onnxpress.quantize.mixed import FLOAT32
from onnxpress.quantize.sensitivity import Sensitivity
from onnxpress.quantize.splicing import open_part, weighted_nodes


def search_document(
    state: State,
    bench: TrialBench,
    splits: Splits,
    limit: Limit,
    budget: Budget,
    outcome: Outcome,
    variant: str | None,
) -> dict[str, Any]:
    """The key `search`; `variant` is the accepted graph's."""
    assert state.fused is not None
    evaluation = splits.search
    before = bench.float32["metric"] if bench.trials else None
    nodes = list(weighted_nodes(open_part(state.fused.path)))
    accepted = outcome.accepted
    checks = {verdict["trial"]: bool(verdict["holds"]) for verdict in bench.verdicts}
    return {
        "limit": {"max_accuracy_drop": limit.max_drop, "min_metric": limit.min_metric},
        "objective": state.config.objective,
        "budget_seconds": budget.seconds,
        "seconds": round(budget.spent, 1),
        "ended": outcome.ended,
        "splits": {"search": len(evaluation.examples), "held_out": len(splits.held_out.examples)},
        "float32": {"metric": before, "milliseconds": bench.float32["milliseconds"]} if bench.trials else None,
        "trials": [_trial(trial, nodes, before, splits, checks.get(trial.name)) for trial in bench.trials],
        "accepted": accepted and {"trial": accepted.name, "variant": variant},
        "held_out": _held_out(bench),
        "sentence": _sentence(bench, limit, splits, outcome, variant),
    }


def unsearched_document(state: State, limit: Limit) -> dict[str, Any]:
    """The key `search` where the evaluation has too few examples for it."""
    return {
        "limit": {"max_accuracy_drop": limit.max_drop, "min_metric": limit.min_metric},
        "objective": state.config.objective,
        "budget_seconds": state.config.search_budget,
        "seconds": 0.0,
        "ended": "done",
        "splits": None,
        "float32": None,
        "trials": [],
        "accepted": None,
        "held_out": None,
        "sentence": "Nothing was searched: the evaluation has too few examples to check with some what others gave.",
    }


def _trial(
    trial: Trial, nodes: Sequence[str], before: float | None, splits: Splits, held_out: bool | None
) -> dict[str, Any]:
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
        "failure": figures["failure"],
        "holds_held_out": held_out,
    }


def _held_out(bench: TrialBench) -> dict[str, Any] | None:
    """What the last check on the examples held out gave, the accepted trial's if there is one; and all looks."""
    if not bench.verdicts:
        return None
    last = bench.verdicts[-1]
    return {key: last[key] for key in ("trial", "holds", "search", "held_out")} | {"looks": len(bench.verdicts)}


def _sentence(bench: TrialBench, limit: Limit, splits: Splits, outcome: Outcome, variant: str | None) -> str:
    """What came of it, for people."""
    asked = limit.words(splits.search)
    if outcome.accepted is not None:
        gain = 1 / outcome.accepted.figures["milliseconds_ratio"]
        return f"{variant} {asked} on both parts of the evaluation, at {gain:.2f} times the speed of float32."
    cut = {"budget": " within the time it had", "interrupt": " before it was interrupted", "done": ""}[outcome.ended]
    if not bench.trials:
        return f"The search could try nothing{cut}: float32 is the answer."
    return f"Of {len(bench.trials)} graphs tried none {asked} and is cheaper than float32{cut}: float32 is the answer."


def sensitivity_document(base: Path, measured: Sequence[Sensitivity], strip: str) -> dict[str, Any] | None:
    """The key `sensitivity`; null where nothing was measured. `strip` as in `modules_of`."""
    if not measured:
        return None
    part = open_part(base)
    nodes, modules = weighted_nodes(part), modules_of(part.model.graph.node, strip)
    return {
        "inputs": measured[0].inputs,
        "precisions": [
            {
                "precision": found.precision,
                "divergence": finite(found.divergence),
                "seconds": round(found.seconds, 1),
                "nodes": [
                    dataclasses.asdict(node)
                    | {"divergence": finite(node.divergence), "local_error": finite(node.local_error)}
                    | {"module": modules.get(nodes[node.node].output[0])}
                    for node in found.nodes
                ],
            }
            for found in measured
        ],
    }
