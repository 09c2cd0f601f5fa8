"""The step that chooses: the variant that is best at the objective among those that passed the gate, and why."""

from __future__ import annotations

import dataclasses

from onnxpress.exporter import bundling
from onnxpress.exporter.benchmark import baseline_name
from onnxpress.exporter.gate import allowed_drop
from onnxpress.exporter.search.limits import Limit
from onnxpress.exporter.state import State, VariantState
from onnxpress.runtime.measuring import Measurement

_SHORTEST = 0  # latency is judged at the shortest length measured: one short request, the common case of a service


def choose(state: State) -> State:
    """Mark the default variant. Variants that are not verified on their target are never chosen."""
    passed = [variant for variant in state.variants if variant.status == "passed"]
    # The gate judges by all examples; what the search found not to hold on a part of them is not what was asked for.
    able = [variant for variant in passed if variant.name not in state.rejected] or passed
    scores = {variant.name: _score(state, variant) for variant in able}
    best = max(able, key=lambda variant: scores[variant.name])
    return dataclasses.replace(state, default=best.name, default_reason=_reason(state, best, able), cached=False)


def _score(state: State, variant: VariantState) -> float:
    """Higher is better. Without measurements the smallest file stands for the fastest, except that fp16 is not."""
    measured = state.measurements.get(variant.name)
    if state.config.objective == "memory" and measured is not None and measured.peak_memory_bytes is not None:
        return -float(measured.peak_memory_bytes)
    if state.config.objective in ("size", "memory"):
        return -float(bundling.variant_size_bytes(state, variant.name))
    if measured is None:
        if ((state.search or {}).get("accepted") or {}).get("variant") == variant.name:  # timed there
            return 4.0
        return {"int4": 3.0, "int8": 2.0, "int8-static": 1.9, "mixed": 1.5, "fp32": 1.0}.get(variant.precision, 0.0)
    if state.task == "text-generation":
        return _tokens_per_second(measured, alone=state.config.objective == "latency")
    if state.config.objective == "latency":
        return -float(measured.latency[_SHORTEST]["p50_ms"])
    return max(float(row["texts_per_second"]) for row in measured.throughput)


def _tokens_per_second(measured: Measurement, alone: bool) -> float:
    """New tokens a second of one request alone, or of as many together as suits the decoder best."""
    rates = {int(row["batch"]): float(row["tokens_per_second"]) for row in measured.throughput}
    return rates[min(rates)] if alone else max(rates.values())


def _reason(state: State, best: VariantState, able: list[VariantState]) -> str:
    held = f"agrees with {state.source.reference}"
    if state.evaluation is not None:
        held = Limit(allowed_drop(state.config), state.config.min_metric).words(state.evaluation)
    plural = held.replace("loses", "lose").replace("agrees", "agree").replace("has ", "have ")
    field = f"of the {len(able)} variants that {plural}"
    if len(able) == 1:
        field = f"as the only variant that {held}"
    measured = state.measurements.get(best.name)
    if state.config.objective == "memory" and measured is not None and measured.peak_memory_bytes is not None:
        return f"the least memory, {measured.peak_memory_bytes / 1e6:.0f} MB at its peak, {field}"
    if state.config.objective in ("size", "memory"):
        return f"the smallest, {bundling.variant_size_bytes(state, best.name) / 1e6:.1f} MB, {field}"
    if measured is None:
        return f"usually the fastest (nothing was measured), {field}"
    if state.task == "text-generation":
        return f"{_fastest_writer(state, measured)}, {field}"
    if state.config.objective == "latency":
        row = measured.latency[_SHORTEST]
        return f"the lowest latency, {row['p50_ms']:.2f} ms for {row['tokens']} tokens, {field}"
    rate = max(row["texts_per_second"] for row in measured.throughput)
    baseline = max(row["texts_per_second"] for row in state.measurements[baseline_name(state.source)].throughput)
    gain = f"{rate / baseline:.1f}x {state.source.reference}"
    return f"the highest throughput, {rate:,.0f} texts a second ({gain}), {field}"


def _fastest_writer(state: State, measured: Measurement) -> str:
    alone = state.config.objective == "latency"
    rate, batch = _tokens_per_second(measured, alone), max(int(row["batch"]) for row in measured.throughput)
    gain = rate / _tokens_per_second(state.measurements[baseline_name(state.source)], alone)
    whom = "one request" if alone else f"up to {batch} requests together"
    return f"the most new tokens a second for {whom}, {rate:,.0f} ({gain:.1f}x {state.source.reference})"
