"""The main job from end to end, on a tiny model: what is in the bundle, what the report says, what is cached."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxpress
from onnxpress.exporter import ExportConfig, Thresholds, gate
from onnxpress.exporter.baseline import load_baseline
from onnxpress.exporter.source import resolve_source
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.errors import VerificationError

TEXTS = ["the order was not sent", "where is my parcel?", "dog", "the cat sat, not the dog.", "", "parcels " * 40]
PAIRS = "score\tsentence1\tsentence2\n" + "".join(
    f"{score}\t{first}\t{second}\n"
    for score, first, second in [
        (5, "the order was sent", "my order was sent"),
        (0, "the cat", "where is my parcel?"),
        (3, "the dog", "the cat"),
        (1, "is the parcel sent?", "dog."),
        (4, "where is the order", "where is my order"),
    ]
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    path.write_text(PAIRS)
    return path


def test_every_variant_agrees_with_pytorch(tiny_model: Path, tiny_bundle: Path) -> None:
    config = ExportConfig()
    source = resolve_source(str(tiny_model), config)
    expected = load_baseline(source, "feature-extraction", config).embed(TEXTS)
    for variant, bound in (("fp32", 2e-6), ("fp16", 5e-3), ("int8", 0.1)):
        found = onnxpress.load(tiny_bundle, variant=variant).embed(TEXTS)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < bound, variant


def test_the_graph_serves_without_onnxpress(tiny_bundle: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tiny_bundle / "fp32" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert session.get_inputs()[0].shape == ["batch", "sequence"]
    assert [entry.name for entry in session.get_outputs()] == ["sentence_embedding"]
    assert session.get_outputs()[0].shape == ["batch", 32]


def test_no_path_of_the_machine_is_in_the_graph(tiny_bundle: Path) -> None:
    data = (tiny_bundle / "fp32" / "model.onnx").read_bytes()
    assert b"site-packages" not in data
    assert str(Path.home()).encode() not in data


def test_the_accuracy_in_the_report_is_the_measured_one(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    result = onnxpress.export(tiny_model, tmp_path / "b", ExportConfig(measure="none", evaluation=(pairs,)))
    from scipy.stats import spearmanr

    rows = [line.split("\t") for line in PAIRS.splitlines()[1:]]
    for variant in result.report["variants"]:
        model = onnxpress.load(result.folder, variant=variant["name"])
        first, second = model.embed([row[1] for row in rows]), model.embed([row[2] for row in rows])
        expected = 100 * spearmanr((first * second).sum(axis=1), [float(row[0]) for row in rows]).statistic
        assert variant["accuracy"] == pytest.approx(expected, abs=1e-3)
    assert result.report["evaluation"]["samples"] == len(rows)


def test_a_second_export_traces_nothing_and_needs_no_pytorch(tiny_model: Path, tmp_path: Path) -> None:
    onnxpress.export(tiny_model, tmp_path / "one", ExportConfig(measure="none", variants=("fp32", "int8")))
    program = (
        "import sys, json, onnxpress\n"
        "config = onnxpress.ExportConfig(measure='none', variants=('fp32', 'int8'), force=True)\n"
        "result = onnxpress.export(sys.argv[1], sys.argv[2], config)\n"
        "print(json.dumps([result.report['steps'], 'torch' in sys.modules, 'transformers' in sys.modules]))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model), str(tmp_path / "one")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    steps, has_torch, has_transformers = json.loads(output)
    assert {step["name"] for step in steps if step["cached"]} >= {"load", "trace", "fuse", "convert"}
    assert not has_torch
    assert not has_transformers


def test_one_more_variant_redoes_only_that(tiny_model: Path, tmp_path: Path) -> None:
    onnxpress.export(tiny_model, tmp_path / "one", ExportConfig(measure="none", variants=("fp32",)))
    result = onnxpress.export(tiny_model, tmp_path / "two", ExportConfig(measure="none", variants=("fp32", "fp16")))
    cached = {step["name"]: step["cached"] for step in result.report["steps"]}
    assert cached["load"]
    assert cached["trace"]
    assert cached["fuse"]


def test_no_cache_leaves_nothing_behind(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "cache"))
    onnxpress.export(tiny_model, tmp_path / "b", ExportConfig(measure="none", variants=("fp32",), cache=False))
    assert not (tmp_path / "cache").exists()


def test_nothing_is_written_when_no_variant_passes(tiny_model: Path, tmp_path: Path) -> None:
    config = ExportConfig(measure="none", variants=("int8",), thresholds=Thresholds(int8_cosine=1.0))
    with pytest.raises(VerificationError, match="int8 differs from PyTorch on"):
        onnxpress.export(tiny_model, tmp_path / "b", config)
    assert not list(tmp_path.iterdir())


def test_a_variant_that_fails_is_left_out_with_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    config = ExportConfig(measure="none", thresholds=Thresholds(int8_cosine=1.0))
    result = onnxpress.export(tiny_model, tmp_path / "b", config)
    assert [variant.name for variant in result.manifest.variants] == ["fp32", "fp16"]
    assert not (result.folder / "int8").exists()
    (failed,) = [variant for variant in result.report["variants"] if variant["status"] == "failed"]
    assert "lowest cosine similarity" in failed["failure"]
    assert set(failed["parity"]["first_divergence"]) == {"tensor", "node", "op_type", "module", "difference"}


def test_a_variant_that_gives_no_numbers_is_left_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_runner = gate._runner

    def broken(state: Any, variant: Any, graph: Any) -> Any:
        run, *others = make_runner(state, variant, graph)
        scale = np.float32(np.nan if variant.name == "int8" else 1)
        return lambda feeds: {name: scale * found for name, found in run(feeds).items()}, *others

    monkeypatch.setattr(gate, "_runner", broken)
    config = ExportConfig(measure="none", variants=("fp32", "int8"), cache=False)
    result = onnxpress.export(tiny_model, tmp_path / "b", config)
    assert [variant.name for variant in result.manifest.variants] == ["fp32"]
    (failed,) = [variant for variant in result.report["variants"] if variant["status"] == "failed"]
    assert "are not finite" in failed["failure"]
    assert failed["parity"]["max_abs_difference"] is None


def test_a_variant_that_loses_accuracy_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    # Pairs whose order by similarity is that of the float32 model, with scores nearly tied: any error reorders them.
    rng = np.random.default_rng(0)
    words = ["the", "order", "was", "not", "sent", "cat", "dog", "where", "is", "my", "parcel"]
    texts = [" ".join(rng.choice(words, 5)) for _ in range(600)]
    config = ExportConfig()
    vectors = load_baseline(resolve_source(str(tiny_model), config), "feature-extraction", config).embed(texts)
    similarities = (vectors[0::2] * vectors[1::2]).sum(axis=1)
    rows = [f"{value:.7f}\t{texts[2 * i]}\t{texts[2 * i + 1]}" for i, value in enumerate(similarities)]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    config = ExportConfig(measure="none", evaluation=(tmp_path / "pairs.tsv",), max_accuracy_drop=0.0)
    result = onnxpress.export(tiny_model, tmp_path / "b", config)
    (int8,) = [variant for variant in result.report["variants"] if variant["name"] == "int8"]
    assert int8["status"] == "failed"
    assert "points" in int8["failure"]
    assert int8["accuracy"] < 100
    assert result.manifest.default_variant != "int8"


def test_the_default_is_the_smallest_when_size_is_the_objective(tiny_model: Path, tmp_path: Path) -> None:
    result = onnxpress.export(tiny_model, tmp_path / "b", ExportConfig(measure="none", objective="size"))
    sizes = {variant.name: variant.size_bytes for variant in result.manifest.variants}
    assert result.manifest.default_variant == min(sizes, key=lambda name: sizes[name])


def test_a_target_that_is_not_here_is_unverified_and_never_the_default(tiny_model: Path, tmp_path: Path) -> None:
    from onnxpress.runtime.providers import unusable_because

    if unusable_because("CUDAExecutionProvider") is None:
        pytest.skip("this machine has CUDA")
    result = onnxpress.export(tiny_model, tmp_path / "b", ExportConfig(measure="none", target="cuda"))
    status = {variant.name: variant.status for variant in result.manifest.variants}
    assert status == {"fp32-cpu": "passed", "fp32": "unverified", "fp16": "unverified"}
    assert result.manifest.default_variant == "fp32-cpu"
    with pytest.warns(UserWarning, match="not verified"):
        onnxpress.load(result.folder, variant="fp16", providers="cpu")


@pytest.mark.slow
def test_measuring_gives_every_figure(tiny_model: Path, tmp_path: Path) -> None:
    result = onnxpress.export(tiny_model, tmp_path / "b", ExportConfig(measure="quick", variants=("fp32",)))
    for row in (result.report["baseline"], result.report["variants"][0]):
        assert [entry["tokens"] for entry in row["latency"]] == [16, 48]
        assert all(entry["p50_ms"] > 0 and entry["p95_ms"] >= entry["p50_ms"] for entry in row["latency"])
        assert all(entry["texts_per_second"] > 0 for entry in row["throughput"])
        assert row["peak_memory_bytes"] > 10e6
        assert row["cold_start_seconds"] > 0
    machine = result.report["machine"]
    assert machine["cpu"]
    assert machine["cores"] >= 1


def test_the_sealed_bundle_holds_what_it_says(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle, verify=True)
    on_disk = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert on_disk == {record.path for record in bundle.manifest.files} | {"onnxpress.json"}
    assert {field.name for field in dataclasses.fields(bundle.manifest)} == set(
        json.loads((tiny_bundle / "onnxpress.json").read_text())
    )
