"""The accuracy in report.json is the one measured: a script that shares nothing with onnxpress finds the same."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxpress
from tests.in_pytorch import save_bert

SCRIPT = Path(__file__).parents[1] / "bench" / "recompute_accuracy.py"
SHARED = Path(os.environ.get("ONNXPRESS_TEST_DATA", Path(__file__).parents[2] / "shared"))
VARIANTS = ("fp32", "int8")
_ROWS = 150


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A classifier's bundle and the file it was evaluated on: a trained one where there is one."""
    folder = tmp_path_factory.mktemp("recomputed")
    model, file = SHARED / "models" / "minilm-sst2", folder / "dev.tsv"
    if model.is_dir():
        rows = (SHARED / "data" / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[:_ROWS]
    else:
        model = save_bert(folder / "model", "SequenceClassification", id2label={0: "negative", 1: "positive"})
        own = Path(str(importlib.resources.files("onnxpress.models"))) / "sentiment.tsv"
        rows = own.read_text(encoding="utf-8").splitlines()[1:]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = onnxpress.ExportConfig(
        variants=VARIANTS, evaluation=(file,), max_accuracy_drop=100, search_budget=0, measure="none", threads=2
    )
    return onnxpress.export(model, folder / "bundle", config).folder, file


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_accuracy_reported_is_found_again(variant: str, exported: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, file = exported
    command = [sys.executable, "-I", str(SCRIPT), str(bundle), variant, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    report = json.loads((bundle / "report.json").read_text())
    reported = {row["name"]: row["accuracy"] for row in report["variants"]}
    assert round(float(done.stdout), 4) == reported[variant]
    assert 0 < reported[variant] <= 100


def test_the_script_shares_no_code() -> None:
    imported = set(re.findall(r"^(?:import|from) (\w+)", SCRIPT.read_text(), re.MULTILINE))
    assert imported <= {*sys.stdlib_module_names, "numpy", "onnxruntime", "tokenizers"}
