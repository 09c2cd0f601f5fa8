"""onnxruntime's GPU wheel on a machine without a GPU: one line, and reasons. `python -m bench.gpu_wheel` makes the
environment that this needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.gpu_wheel import check

PYTHON = os.environ.get("ONNXPRESS_GPU_WHEEL_PYTHON")


@pytest.mark.skipif(not PYTHON, reason="ONNXPRESS_GPU_WHEEL_PYTHON names no interpreter that has onnxruntime-gpu")
def test_one_line_and_reasons(tiny_bundle: Path) -> None:
    checks = check(Path(PYTHON or ""), tiny_bundle)
    assert not [f"{each.name}: {each.seen}" for each in checks if not each.passed]
