"""Which variant becomes the default, for given figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxpress.exporter.benchmark import BASELINE
from onnxpress.exporter.choosing import choose
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.fusion import fastest
from onnxpress.exporter.state import Graph, State, VariantState
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.measuring import Measurement

SIZES = {"fp32": 400, "fp16": 200, "int8": 100}
LATENCY = {BASELINE: 9.0, "fp32": 2.0, "fp16": 3.0, "int8": 2.5}
MEMORY = {BASELINE: 900_000_000, "fp32": 400_000_000, "fp16": 250_000_000, "int8": 300_000_000}
RATE = {BASELINE: 100.0, "fp32": 200.0, "fp16": 150.0, "int8": 300.0}


def state(folder: Path, config: ExportConfig, measured: bool = True, **status: str) -> State:
    variants = []
    for name, size in SIZES.items():
        (folder / name).mkdir()
        (folder / name / "model.onnx").write_bytes(b"x" * size)
        graph = Graph(folder / name / "model.onnx", SessionSettings(), ())
        variants.append(VariantState(name, name, "cpu", graph, status=status.get(name, "passed")))
    measurements = {
        name: Measurement(
            latency=[{"tokens": 16, "p50_ms": LATENCY[name]}, {"tokens": 64, "p50_ms": 100 - LATENCY[name]}],
            throughput=[{"batch": 1, "texts_per_second": 1.0}, {"batch": 8, "texts_per_second": RATE[name]}],
            peak_memory_bytes=MEMORY[name],
            cold_start_seconds=1.0,
        )
        for name in RATE
    }
    unused: Any = None
    pytorch: Any = SimpleNamespace(onnx=None, reference="PyTorch")
    return State(
        config=config,
        source=pytorch,
        task="feature-extraction",
        evaluation=None,
        calibration=None,
        folder=folder,
        cache=unused,
        threads=1,
        progress=lambda step, detail, fraction: None,
        verbose=False,
        created="",
        variants=tuple(variants),
        measurements=measurements if measured else {},
    )


@pytest.mark.parametrize(
    ("objective", "expected", "reason"),
    [
        ("throughput", "int8", "300 texts a second (3.0x PyTorch)"),
        ("latency", "fp32", "2.00 ms for 16 tokens"),
        ("size", "int8", "the smallest"),
    ],
)
def test_the_objective_decides(tmp_path: Path, objective: Any, expected: str, reason: str) -> None:
    chosen = choose(state(tmp_path, ExportConfig(objective=objective)))
    assert chosen.default == expected
    assert reason in chosen.default_reason


@pytest.mark.parametrize(
    ("objective", "expected", "reason"),
    [
        ("throughput", "fp32", "the most new tokens a second for up to 16 requests together, 900 (3.0x PyTorch)"),
        ("latency", "int8", "the most new tokens a second for one request, 90 (4.5x PyTorch)"),
    ],
)
def test_decoders_are_chosen_by_new_tokens_a_second(tmp_path: Path, objective: Any, expected: str, reason: str) -> None:
    rates = {BASELINE: (20.0, 300.0), "fp32": (60.0, 900.0), "fp16": (50.0, 500.0), "int8": (90.0, 800.0)}
    given = state(tmp_path, ExportConfig(objective=objective))
    measurements = {
        name: dataclasses.replace(
            given.measurements[name],
            throughput=[{"batch": 1, "tokens_per_second": alone}, {"batch": 16, "tokens_per_second": together}],
        )
        for name, (alone, together) in rates.items()
    }
    chosen = choose(dataclasses.replace(given, task="text-generation", measurements=measurements))
    assert chosen.default == expected
    assert reason in chosen.default_reason


@pytest.mark.parametrize("status", ["failed", "unverified"])
def test_only_what_passed_is_chosen(tmp_path: Path, status: str) -> None:
    chosen = choose(state(tmp_path, ExportConfig(), int8=status))
    assert chosen.default == "fp32"
    assert "of the 2 variants" in chosen.default_reason


def test_the_least_memory_is_that_of_the_process(tmp_path: Path) -> None:
    chosen = choose(state(tmp_path, ExportConfig(objective="memory")))
    assert chosen.default == "fp16"
    assert "the least memory, 250 MB at its peak, of the 3 variants" in chosen.default_reason


def test_what_did_not_hold_in_the_search_is_not_chosen(tmp_path: Path) -> None:
    given = dataclasses.replace(state(tmp_path, ExportConfig()), rejected=frozenset({"int8"}))
    assert choose(given).default == "fp32"


def test_without_measurements_what_the_search_accepted_is_chosen(tmp_path: Path) -> None:
    given = state(tmp_path, ExportConfig(), measured=False)
    found = {"accepted": {"trial": "mixed 3", "variant": "fp16"}}
    assert choose(dataclasses.replace(given, search=found)).default == "fp16"


def test_without_measurements_fp16_is_not_taken_for_fast(tmp_path: Path) -> None:
    chosen = choose(state(tmp_path, ExportConfig(measure="none"), measured=False, int8="failed"))
    assert chosen.default == "fp32"
    assert "nothing was measured" in chosen.default_reason


def test_the_simplest_form_wins_among_equals() -> None:
    assert fastest([10.0, 9.9, 9.85]) == 0
    assert fastest([10.0, 9.0, 8.95]) == 1
    assert fastest([10.0, 12.0, 9.0]) == 2
