"""How the variants of a decoder beside fp32 are made: half precision, and weights in 8 or 4 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxpress.exporter.calibration import PrefillFeeds, calibration_rows
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.state import TOKENIZER_FILE, State
from onnxpress.quantize.graphs import PassReport

_BITS = {"int8": 8, "int4": 4}
_CALIBRATED = ("int4",)  # 8 bits are so near to float32 that texts gain nothing


def maker(state: State, precision: str) -> tuple[dict[str, Any], Callable[[State, Path], dict[str, Any]]]:
    """What a variant depends on beside the model, as JSON data, and what writes it into a folder."""
    config = state.config.weight_only(_BITS[precision])
    calibration = state.calibration if precision in _CALIBRATED else None

    def make(state: State, folder: Path) -> dict[str, Any]:
        from onnxpress.quantize.weight_only import quantize_weights

        assert state.fused is not None
        with quiet(state.verbose):
            rows = None if calibration is None else _rows(state)
            feeds = None if rows is None else PrefillFeeds(state.fused.path, rows)
            report = quantize_weights(state.fused.path, folder / "model.onnx", config, feeds)
        if rows is not None:
            tokens = sum(map(len, rows))
            report = dataclasses.replace(report, summary=f"{report.summary} on {tokens:,} tokens of calibration text")
        return _made(report)

    return {
        "weight_only": dataclasses.asdict(config),
        "calibration": calibration and calibration.sha256,
    }, make


def _made(report: PassReport) -> dict[str, Any]:
    return {"graphs": [{"path": "model.onnx", "report": dataclasses.asdict(report)}], "candidates": []}


def _rows(state: State) -> list[list[int]]:
    """Token ids of the calibration texts."""
    import tokenizers

    assert state.calibration is not None
    assert state.facts is not None
    tokenizer = tokenizers.Tokenizer.from_file(str(state.folder / TOKENIZER_FILE))
    return calibration_rows(state.calibration.texts, tokenizer, state.facts.settings.tokenizer.max_length)
