"""The step that reports: everything measured and decided as report.json (docs/bundle.md) and a page made from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import onnxpress
from onnxpress.exporter import bundling
from onnxpress.exporter.benchmark import baseline_name
from onnxpress.exporter.calibration import decoder_rows, encoder_feeds, uses_calibration
from onnxpress.exporter.gate import allowed_drop
from onnxpress.exporter.page import render_report
from onnxpress.exporter.state import State, VariantState
from onnxpress.runtime import hardware
from onnxpress.runtime.evaluation import Interval
from onnxpress.runtime.machine import describe_machine, versions
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.measuring import Measurement

SCHEMA_VERSION = 1


def report(state: State) -> State:
    """Write report.json and report.html into the staging folder."""
    document = build_report(state)
    bundling.write_report_files(state, document, render_report(document))
    return dataclasses.replace(state, report=document, cached=False)


def build_report(state: State) -> dict[str, Any]:
    """The report as JSON data; docs/bundle.md describes every key."""
    facts, config = state.facts, state.config
    assert facts is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "onnxpress_version": onnxpress.__version__,
        "created": state.created,
        "model": {
            "source": state.source.location,
            "name": state.source.name,
            "revision": state.source.revision,
            "task": state.task,
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "weights_sha256": state.source.files_sha256,
            "max_length": facts.settings.tokenizer.max_length,
            **_head(facts.settings),
            "notes": list(facts.notes),
        },
        "target": config.target,
        "objective": config.objective,
        "max_accuracy_drop": allowed_drop(config),
        "min_metric": config.min_metric,
        "machine": dataclasses.asdict(describe_machine()) | {"threads": state.threads},
        "hardware": _hardware(state),
        "versions": versions(),
        "evaluation": state.evaluation and state.evaluation.facts(),
        "calibration": _calibration(state),
        "measurement": state.workload_facts,
        "baseline": _baseline(state),
        "sensitivity": state.sensitivity,
        "search": state.search,
        "variants": [_variant(state, variant) for variant in state.variants],
        "default": {"variant": state.default, "reason": state.default_reason},
        "steps": list(state.timings),
    }


def _hardware(state: State) -> dict[str, Any]:
    """What the hardware of this machine decided; what was asked for is not among it."""
    config = state.config
    here, made = config.hardware_for(state.task), [variant.precision for variant in state.variants]
    decisions = hardware.decide(here, config.default_precisions(state.task), made)
    blocks = next(
        (asked for asked in (config.block_size, config.symmetric, config.calibration) if asked is not None), None
    )
    asked = {
        hardware.VARIANTS: config.variants,
        hardware.ACCURACY_LEVEL: config.accuracy_level,
        hardware.INT4_BLOCKS: blocks,
    }
    return {
        "features": list(here.machine.cpu_features),
        "int8_dot_product": hardware.int8_dot_product(here.machine),
        "cuda_compute_capability": here.capability,
        "decisions": [dataclasses.asdict(entry) for entry in decisions if asked.get(entry.name) is None],
    }


def _head(settings: TaskSettings) -> dict[str, Any]:
    """What is particular to the task; null for others."""
    embedding, labels = settings.embedding, settings.labels
    return {
        "embedding_dimension": embedding and embedding.dimension,
        "pooling": embedding and ", ".join(embedding.modules),
        "normalized": embedding and embedding.normalized,
        "labels": labels and list(labels.names),
    }


def _calibration(state: State) -> dict[str, Any] | None:
    """What the variants of the bundle were calibrated on, if any was."""
    if not any(uses_calibration(state, variant.precision) for variant in state.variants):
        return None
    if state.task != "text-generation":
        return encoder_feeds(state)[1]
    assert state.calibration is not None
    return decoder_rows(state, state.calibration)[1]


def _baseline(state: State) -> dict[str, Any] | None:
    measured = state.measurements.get(baseline_name(state.source))
    scores = state.baseline_scores
    # Of an ONNX file always: the page then says what variants were compared with.
    if measured is None and scores is None and state.source.onnx is None:
        return None
    assert state.facts is not None
    return {
        "name": baseline_name(state.source),
        "accuracy": _rounded(scores.primary if scores else None),
        "metrics": _rounded_all(scores.metrics if scores else {}),
        **_figures(measured),
        "size_bytes": state.facts.weights_bytes,
    }


def _variant(state: State, variant: VariantState) -> dict[str, Any]:
    failed = variant.status == "failed"
    drop = None
    if variant.accuracy is not None and state.baseline_scores is not None:
        assert state.evaluation is not None
        drop = state.evaluation.loss(state.baseline_scores.primary, variant.accuracy)
    return {
        "name": variant.name,
        "precision": variant.precision,
        "target": variant.target,
        "status": variant.status,
        "default": variant.name == state.default,
        "failure": variant.failure,
        "accuracy": _rounded(variant.accuracy),
        "accuracy_drop": _rounded(drop),
        "accuracy_interval": _interval(variant.accuracy_interval),
        "metrics": _rounded_all(variant.metrics),
        "changed_answers": variant.changed_answers,
        "agreement": variant.parity.agreement if variant.parity else None,
        **_figures(state.measurements.get(variant.name)),
        "size_bytes": None if failed else bundling.variant_size_bytes(state, variant.name),
        "parity": _parity(variant),
        "passes": [dataclasses.asdict(entry) for entry in variant.graph.passes],
        "candidates": list(variant.graph.candidates),
        "float32_nodes": [name for entry in variant.graph.passes for name in entry.float32_nodes],
        "notes": list(variant.notes),
    }


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return _rounded_all(dataclasses.asdict(interval)) if interval and interval.finite else None


def _parity(variant: VariantState) -> dict[str, Any] | None:
    if variant.parity is None:
        return None
    document = dataclasses.asdict(variant.parity)
    for entry in (document, *document["cases"]):
        if entry["max_abs_difference"] == float("inf"):  # the run gave nothing that could be compared
            entry["max_abs_difference"] = entry["min_cosine"] = entry["rms_error"] = None
    return document | {"first_divergence": variant.first_divergence}


def _figures(measured: Measurement | None) -> dict[str, Any]:
    if measured is None:
        return {"latency": [], "throughput": [], "peak_memory_bytes": None, "cold_start_seconds": None}
    return {
        "latency": [_rounded_rates(row) for row in measured.latency],
        "throughput": [_rounded_rates(row) for row in measured.throughput],
        "peak_memory_bytes": measured.peak_memory_bytes,
        "cold_start_seconds": round(measured.cold_start_seconds, 3),
    }


def _rounded_rates(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 1) if name.endswith("_per_second") else value for name, value in row.items()}


def _rounded(value: float | None) -> float | None:
    """JSON has no infinite numbers, and none for what is no number."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _rounded_all(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}
