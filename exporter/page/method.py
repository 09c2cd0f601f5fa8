"""How everything was measured, and on what: the last section of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxpress.exporter.page.markup import Html, element
from onnxpress.exporter.page.tables import definitions
from onnxpress.exporter.page.values import (
    MISSING,
    Report,
    capitalized,
    figure,
    lower_is_better,
    number,
    part,
    reference,
    writes,
)

# What stands for one text where a task reads more than one (runtime/workload.py).
_UNITS = {
    "text-ranking": "a text is a document that is scored for a query",
    "question-answering": "a text is a context that is asked a question",
    "zero-shot-classification": "a text is judged for one label",
}
_MOST_LABELS = 10
_LABEL_LENGTH = 40


def method_lead(report: Report) -> str:
    """How the figures came about, in words."""
    measurement = part(report, "measurement")
    if not measurement:
        return "Nothing was timed (--measure none)."
    rounds = figure(measurement, "rounds")
    turns = "" if rounds is None else f", in {rounds:.0f} rounds" if rounds != 1 else ", in one round"
    what = "on the same prompts, no two of which begin alike" if writes(report) else "on the same texts"
    unit = _UNITS.get(str(part(report, "model").get("task")))
    return (
        f"{capitalized(reference(report))} and every variant ran in processes of their own, in turn{turns}, with equal "
        f"threads, {what}{f'; {unit}' if unit else ''}. Figures belong to this machine; ratios carry over "
        "to others better than milliseconds do."
    )


def synthetic_warning(report: Report) -> str | None:
    """What to say where quantization has seen no text."""
    if part(report, "calibration").get("source") != "synthetic":
        return None
    return (
        "Calibrated on synthetic data: random tokens of the vocabulary, no texts. Give texts like those the model will "
        "read (--calibration) for ranges that fit them."
    )


def method_facts(report: Report) -> Html:
    """What everything was measured with, in groups."""
    groups = (
        ("Machine", _machine_facts(part(report, "machine"))),
        ("Decided by the hardware here", _decisions(part(report, "hardware"))),
        ("Measurement", _measurement_facts(part(report, "measurement"), part(report, "evaluation"))),
        ("Calibration", _calibration_facts(part(report, "calibration"))),
        ("Model", _model_facts(report)),
        ("Versions", [(name, version) for name, version in part(report, "versions").items()]),
    )
    blocks = [
        element("div", element("h3", title), definitions(known))
        for title, facts in groups
        if (known := [(name, value) for name, value in facts if value not in (None, "", MISSING)])
    ]
    return element("div", blocks, class_="facts-groups")


def _machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, object]]:
    memory = figure(machine, "memory_bytes")
    return [
        ("Processor", machine.get("cpu")),
        ("Architecture", machine.get("architecture")),
        ("Cores", machine.get("cores")),
        ("Instruction sets", ", ".join(str(name) for name in machine.get("cpu_features") or [])),
        ("GPU", machine.get("gpu")),
        ("Memory", None if memory is None else f"{memory / 1e9:,.1f} GB"),
        ("System", machine.get("system")),
        ("Python", machine.get("python")),
    ]


def _decisions(hardware: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What was decided for this machine, and why; on another kind of it, other choices may be right."""
    capability = hardware.get("cuda_compute_capability")
    rows: list[tuple[str, object]] = [("CUDA compute capability", capability)]
    rows += [
        (capitalized(str(entry.get("name"))), f"{entry.get('choice')}: {entry.get('reason')}")
        for entry in hardware.get("decisions") or []
    ]
    if len(rows) > 1:
        elsewhere = "other choices may be right: export there, or see what onnxpress bench says there"
        rows.append(("On another kind of machine", elsewhere))
    return rows


def _measurement_facts(measured: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, object]]:
    mean, longest = figure(measured, "tokens_mean"), figure(measured, "tokens_max")
    lengths = None if mean is None else f"{number(mean, 1)} on average"
    if lengths and longest is not None:
        lengths += f", at most {longest:,.0f}"
    return [
        ("Mode", measured.get("mode")),
        ("Rounds", measured.get("rounds")),
        ("Threads", measured.get("threads")),
        ("Texts", measured.get("texts")),
        ("Prompts written after", _tokens(measured, "prompt_tokens")),
        ("New tokens a request", measured.get("new_tokens")),
        ("Tokens a text", lengths),
        ("Provider", measured.get("provider")),
        ("Evaluation files", _joined(evaluation.get("files"))),
        ("Metric", evaluation.get("label")),
        ("Evaluation samples", _samples(evaluation)),
        ("Evaluation hash", _hash(evaluation.get("sha256"))),
    ]


def _calibration_facts(calibration: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [
        ("Calibrated on", _CALIBRATED_ON.get(str(calibration.get("source")))),
        ("Calibration files", _joined(calibration.get("files"))),
        ("Calibration samples", _samples(calibration)),
        ("Calibration tokens", _count(calibration, "tokens")),
        ("Calibration hash", _hash(calibration.get("sha256"))),
    ]


_CALIBRATED_ON = {
    "files": "texts that were given",
    "evaluation": "texts of the evaluation",
    "synthetic": "synthetic sequences of random tokens",
}


def _samples(data: Mapping[str, Any]) -> str | None:
    """How many were used, and of how many where these are more."""
    samples, rows = figure(data, "samples"), figure(data, "rows")
    if samples is None:
        return None
    return f"{samples:,.0f}" if rows is None or rows <= samples else f"{samples:,.0f} of {rows:,.0f}, drawn evenly"


def _model_facts(report: Report) -> list[tuple[str, object]]:
    model = part(report, "model")
    allowed = figure(report, "max_accuracy_drop")
    return [
        ("Source", model.get("source")),
        ("Revision", model.get("revision")),
        ("Labels", _labels(model.get("labels") or [])),
        ("Pooling", model.get("pooling")),
        ("Normalized", {"True": "yes", "False": "no"}.get(str(model.get("normalized")))),
        ("Weights hash", _hash(model.get("weights_sha256"))),
        ("Target", report.get("target")),
        ("Objective", report.get("objective")),
        ("Accuracy drop allowed", None if allowed is None else _loss(report, allowed)),
    ]


def _joined(names: Sequence[object] | None) -> str:
    return ", ".join(map(str, names or []))


def _tokens(measured: Mapping[str, Any], key: str) -> str | None:
    count = _count(measured, key)
    return None if count is None else f"{count} tokens"


def _count(measured: Mapping[str, Any], key: str) -> str | None:
    count = figure(measured, key)
    return None if count is None else f"{count:,.0f}"


def _loss(report: Report, allowed: float) -> str:
    return f"{allowed:g} %" if lower_is_better(report) else f"{allowed:g} point{'s' * (allowed != 1)}"


def _hash(value: object) -> Html | None:
    return element("code", f"sha256:{value}") if value else None


def _labels(names: Sequence[object]) -> str:
    """The first few names, and how many there are in all."""
    listed = [str(name) for name in names[:_MOST_LABELS]]
    shown = [name if len(name) <= _LABEL_LENGTH else f"{name[: _LABEL_LENGTH - 1]}…" for name in listed]
    rest = f", … ({len(names):,} in all)" if len(names) > len(shown) else ""
    return ", ".join(shown) + rest
