"""How the variants of a decoder beside fp32 are made: half precision, and weights in 8 or 4 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from onnxpress.exporter.calibration import SYNTHETIC, Calibration, PrefillFeeds, decoder_rows
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.state import State
from onnxpress.quantize.graphs import PassReport
from onnxpress.quantize.weight_only import WeightOnlyConfig, quantize_weights
from onnxpress.runtime.generation.replay import rows_of
from onnxpress.runtime.hardware import HALF_TYPES

_BITS = {"int8": 8, "int4": 4}
_CALIBRATED = ("int4",)  # 8 bits are so near to float32 that texts gain nothing
_CACHE = ("past.", "present.")
_POSITIONS = ("position_ids", "total_sequence_length")
_LONGEST = 64  # tokens of a prompt to look for large values on, which all nodes keep for it

Make = Callable[[State, Path], dict[str, Any]]


def maker(state: State, precision: str) -> tuple[dict[str, Any], Make]:
    """What a variant depends on beside the model, as JSON data, and what writes it into a folder."""
    if precision in HALF_TYPES:
        return {}, _half(HALF_TYPES[precision])
    config = state.config.weight_only(_BITS[precision])
    calibration = state.calibration if precision in _CALIBRATED else None
    depends_on = {
        "weight_only": dataclasses.asdict(config),
        "calibration": None if calibration is None else calibration.sha256,
    }
    return depends_on, _weight_only(config, calibration)


def _half(dtype: Literal["float16", "bfloat16"]) -> Make:
    """Weights, activations and cache in half precision; logits stay in float32."""

    def make(state: State, folder: Path) -> dict[str, Any]:
        from onnxpress.quantize.fp16 import Fp16Config, convert_fp16

        assert state.fused is not None
        rows = [row[:_LONGEST] for case in state.cases for row in rows_of(case.feeds)]
        config = Fp16Config(dtype=dtype, half_io=_CACHE, positions=_POSITIONS)
        with quiet(state.verbose):
            feeds = PrefillFeeds(state.fused.path, rows)
            report = convert_fp16(state.fused.path, folder / "model.onnx", feeds, config)
        return _made(report)

    return make


def _weight_only(config: WeightOnlyConfig, calibration: Calibration | None) -> Make:
    """Weights in few bits, rounded on texts where there are any."""

    def make(state: State, folder: Path) -> dict[str, Any]:
        assert state.fused is not None
        with quiet(state.verbose):
            if calibration is None:
                return _made(quantize_weights(state.fused.path, folder / "model.onnx", config))
            rows, facts = decoder_rows(state, calibration)
            feeds = PrefillFeeds(state.fused.path, rows)
            report = quantize_weights(state.fused.path, folder / "model.onnx", config, feeds)
        what = "random tokens" if facts["source"] == SYNTHETIC else "tokens of calibration text"
        return _made(dataclasses.replace(report, summary=f"{report.summary} on {facts['tokens']:,} {what}"))

    return make


def _made(report: PassReport) -> dict[str, Any]:
    return {"graphs": [{"path": "model.onnx", "reports": [dataclasses.asdict(report)]}], "candidates": []}
