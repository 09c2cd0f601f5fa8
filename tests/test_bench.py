"""`onnxpress bench`: a bundle's variants measured again where it serves, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxpress
from onnxpress.cli import main
from onnxpress.cli.figures import comparison, table
from onnxpress.runtime import bench, measuring
from onnxpress.runtime.bench import Accuracy, Figures, advice, keep, read_bench
from onnxpress.runtime.bundle import Bundle, open_bundle
from onnxpress.runtime.measuring import Plan
from tests.elsewhere import change_manifest

Capture = pytest.CaptureFixture[str]
SHORT = Plan(rounds=1, latency_seconds=0.01, throughput_seconds=0.01, batches=(1, 8), cold_starts=1)
WORDS = ["the", "cat", "dog", "order", "parcel", "was", "sent", "where", "is", "not", "my", "a"]
PAIRS = "score\tsentence1\tsentence2\n" + "".join(
    f"{n % 6}\t{' '.join(WORDS[n % 5 :: 3])}\t{' '.join(WORDS[n % 7 :: 2])}\n" for n in range(24)
)


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "QUICK", SHORT)


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return open_bundle(change_manifest(bundle_copy, latency_ms=None))


def read_only(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o500 if path.is_dir() else 0o400)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def kept_file(bundle: Bundle) -> Path:
    (path,) = (Path(os.environ["ONNXPRESS_CACHE"]) / "bench" / bundle.manifest_sha256[:32]).iterdir()
    return path


def figures(name: str, rate: float, ms: float = 1.0, created: str = "2026-01-01T00:00:00Z", **more: Any) -> Figures:
    measurement = {"mode": "quick", "rounds": 2, "threads": 2, "texts": 9, "tokens_mean": 4.0, "tokens_max": 9}
    latency = ({"tokens": 16, "p50_ms": ms}, {"tokens": 48, "p50_ms": 9.0})
    throughput = ({"batch": 1, "texts_per_second": rate / 2}, {"batch": 8, "texts_per_second": rate})
    return Figures(name, created, measurement, latency, throughput, 90_000_000, 0.4, **more)


def accuracy(value: float, sha256: str = "a") -> Accuracy:
    return Accuracy({"spearman": value, "pearson": 1.0}, "Spearman", ("pairs.tsv",), sha256, 24)


# Measuring


def test_variants_are_measured_and_the_bundle_is_left_alone(bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    read_only(bundle.folder)
    before = files(bundle.folder)
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    command = ["bench", str(bundle.folder), "--threads", "1", "--eval", str(tmp_path / "pairs.tsv"), "--json"]
    assert main([*command, "--variant", "int8", "--variant", "fp32"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert files(bundle.folder) == before
    assert [row["name"] for row in document["variants"]] == ["int8", "fp32"]
    for row in document["variants"]:
        assert [entry["batch"] for entry in row["throughput"]] == [1, 8]
        assert [entry["tokens"] for entry in row["latency"]] == [16, 48]
        assert row["peak_memory_bytes"] > 20e6
        assert row["cold_start_seconds"] > 0
        assert row["measurement"]["threads"] == 1
        assert row["accuracy"]["samples"] == 24
    pairs = [line.split("\t") for line in PAIRS.splitlines()[1:]]
    vectors = [onnxpress.load(bundle.folder, variant="fp32").embed([pair[side] for pair in pairs]) for side in (1, 2)]
    from scipy.stats import spearmanr

    expected = 100 * spearmanr([float(pair[0]) for pair in pairs], (vectors[0] * vectors[1]).sum(axis=1)).statistic
    assert document["variants"][1]["accuracy"]["metrics"]["spearman"] == pytest.approx(expected, abs=1e-3)
    assert {figures.name for figures in read_bench(bundle).variants} == {"fp32", "int8"}

    assert main(["inspect", str(bundle.folder)]) == 0
    shown = capsys.readouterr().out
    assert "measured on this machine with onnxpress bench, 20" in shown
    assert re.search(r"^ +int8 .*  [\d.]+ +- +- +[\d,]+ +- +- +-?[\d.]+ +- +\d+$", shown, re.MULTILINE)


def test_the_table_shows_every_variant_and_the_default(bundle: Bundle, capsys: Capture) -> None:
    assert main(["bench", str(bundle.folder)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert [line.split()[0] for line in lines[4:7]] == ["fp32", "fp16", "int8"]
    assert lines[-1].startswith(f"default: {bundle.manifest.default_variant}, as the bundle says")


def test_a_decoder_is_measured_by_its_tokens(tmp_path: Path, capsys: Capture) -> None:
    from tests.models import save_decoder

    folder = save_decoder(tmp_path / "decoder")
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",))
    made = onnxpress.export(folder, tmp_path / "bundle", config).folder
    assert main(["bench", str(made), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["variants"]
    assert [entry["batch"] for entry in row["throughput"]] == [1, 16]
    assert all(entry["tokens_per_second"] > 0 for entry in (*row["throughput"], *row["latency"]))
    assert row["measurement"]["new_tokens"] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--variant", "int3"], "the bundle has no variant 'int3'; it has: fp32, fp16, int8"),
        (["--threads", "0"], "threads is 0; give a whole number of at least 1"),
        (["--threads", "99999"], "threads is 99999, and this process may use"),
        (["--eval", "/nowhere.tsv"], "/nowhere.tsv"),
    ],
)
def test_what_cannot_be_measured_is_said(bundle: Bundle, capsys: Capture, options: list[str], sentence: str) -> None:
    assert main(["bench", str(bundle.folder), *options]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def on_cuda(bundle: Bundle, *names: str) -> Bundle:
    path = bundle.folder / "onnxpress.json"
    manifest = json.loads(path.read_text())
    for variant in manifest["variants"]:
        variant["target"] = "cuda" if variant["name"] in names else "cpu"
    path.write_text(json.dumps(manifest))
    return open_bundle(bundle.folder)


@pytest.mark.skipif("CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers(), reason="has CUDA")
def test_variants_of_a_provider_that_is_not_here_are_left_out_and_never_measured_on_another(
    bundle: Bundle, capsys: Capture
) -> None:
    variants, reasons = bench.choose_variants(on_cuda(bundle, "fp16"), [])
    assert [variant.name for variant in variants] == ["fp32", "int8"]
    assert "was built without it" in reasons["fp16"]
    assert main(["bench", str(bundle.folder), "--variant", "fp16"]) == 2
    assert "variant 'fp16' is for cuda: the installed onnxruntime" in capsys.readouterr().err
    on_cuda(bundle, "fp32", "fp16", "int8")
    assert main(["bench", str(bundle.folder)]) == 2


# Keeping


def test_figures_are_kept_by_bundle_machine_and_onnxruntime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(bundle, [figures("fp32", 100.0)])
    assert read_bench(bundle).of("fp32") == figures("fp32", 100.0)
    assert read_bench(dataclasses.replace(bundle, manifest_sha256="f" * 64)).variants == ()
    monkeypatch.setattr(bench, "onnxruntime_version", lambda: "1.99.0")
    assert read_bench(bundle).variants == ()
    monkeypatch.undo()
    here = bench.describe_machine()
    monkeypatch.setattr(bench, "describe_machine", lambda: dataclasses.replace(here, cores=here.cores + 1))
    assert read_bench(bundle).variants == ()


def test_one_variant_measured_anew_keeps_the_others_and_its_accuracy(bundle: Bundle) -> None:
    keep(bundle, [figures("fp32", 100.0, accuracy=accuracy(80.0)), figures("int8", 200.0)])
    keep(bundle, [figures("fp32", 150.0)])
    kept = read_bench(bundle)
    assert [(entry.name, entry.throughput[1]["texts_per_second"]) for entry in kept.variants] == [
        ("fp32", 150.0),
        ("int8", 200.0),
    ]
    assert kept.variants[0].accuracy == accuracy(80.0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text.replace('"created": "', '"created": 7, "x": "'),
        lambda text: text.replace('"cold_start_seconds"', '"warm_start_seconds"'),
        lambda text: text.replace('"p50_ms": 1.0', '"p50_ms": 0'),
        lambda text: text.replace('"p50_ms"', '"p51_ms"'),
        lambda text: text.replace('"tokens": 16', '"tokens": "x"'),
        lambda text: re.sub(r'"latency": \[.*?\]', '"latency": []', text, flags=re.DOTALL),
        lambda text: "\udcff",
    ],
)
def test_a_broken_file_is_ignored_with_a_sentence(
    bundle: Bundle, capsys: Capture, damage: Callable[[str], str]
) -> None:
    keep(bundle, [figures("fp32", 100.0)])
    path = kept_file(bundle)
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    assert main(["inspect", str(bundle.folder)]) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"onnxpress: {path} cannot be used and is ignored: ")
    assert "onnxpress bench writes it anew" in line
    assert "measured on this machine" not in captured.out
    onnxpress.load(bundle.folder)
    keep(bundle, [figures("int8", 100.0)])
    assert [entry.name for entry in read_bench(bundle).variants] == ["int8"]


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_measured(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(measuring, "measure", lambda *args: pytest.fail("measured"))
    assert main(["bench", str(bundle.folder)]) == 2
    assert "set ONNXPRESS_CACHE to a folder that can be written" in capsys.readouterr().err


# Beside the bundle's figures


def with_report(bundle: Bundle, objective: str = "throughput", **of_measurement: Any) -> Bundle:
    """The bundle with a report in which every variant does 100 texts a second, and a text in 2 ms."""
    path = bundle.folder / "report.json"
    report = json.loads(path.read_text()) | {"objective": objective, "max_accuracy_drop": 1.0}
    report["measurement"] = figures("any", 1.0).measurement | of_measurement
    for row in report["variants"]:
        row |= {"latency": [{"tokens": 16, "p50_ms": 2.0}], "throughput": [{"batch": 8, "texts_per_second": 100.0}]}
    path.write_text(json.dumps(report))
    manifest = json.loads((bundle.folder / "onnxpress.json").read_text()) | {"default_variant": "fp32"}
    for record in manifest["files"]:
        if record["path"] == "report.json":
            record["size_bytes"] = path.stat().st_size
    (bundle.folder / "onnxpress.json").write_text(json.dumps(manifest))
    return open_bundle(bundle.folder)


def test_more_than_one_is_faster_here(bundle: Bundle) -> None:
    (row,) = comparison(with_report(bundle), [figures("fp32", 50.0, ms=1.0)])
    assert (row["latency_speedup"], row["throughput_speedup"]) == (2.0, 0.5)
    assert (row["bundle_latency_ms"], row["bundle_per_second"], row["tokens"]) == (2.0, 100.0, 16)
    heading, line = table([row], is_decoder=False)
    assert " ".join(heading.split()) == (
        "variant ms here bundle speed texts/s here bundle speed accuracy here bundle RAM MB"
    )
    assert " ".join(line.split()) == "fp32 1.00 2.00 2.00x 50 100 0.50x - - 90"


def test_rates_on_other_texts_are_not_compared(bundle: Bundle) -> None:
    (row,) = comparison(with_report(bundle, tokens_mean=31.0), [figures("fp32", 50.0)])
    assert row["throughput_speedup"] is None
    assert row["latency_speedup"] == 2.0


def test_a_bundle_without_a_report_is_measured_all_the_same(bundle: Bundle) -> None:
    (bundle.folder / "report.json").write_text("{")
    (row,) = comparison(bundle, [figures("fp32", 50.0)])
    assert (row["latency_ms"], row["bundle_latency_ms"], row["latency_speedup"]) == (1.0, None, None)
    assert advice(bundle, bench.Bench((figures("fp32", 50.0),))) is None


# Advice


def test_a_variant_that_is_clearly_faster_than_the_default_is_told(bundle: Bundle) -> None:
    known = bench.Bench((figures("fp32", 100.0), figures("fp16", 90.0), figures("int8", 130.0)))
    assert advice(with_report(bundle), known) == (
        "int8 is 1.30x as fast as fp32, the bundle's default, by throughput on this machine: "
        "load(..., variant='int8'), or --variant int8"
    )


@pytest.mark.parametrize(
    ("objective", "others"),
    [
        ("throughput", [figures("int8", 104.0)]),  # noise
        ("throughput", [figures("int8", 200.0, created="2026-01-02T00:00:00Z")]),  # not in turn with the default
        ("throughput", [figures("int8", 200.0, accuracy=accuracy(78.9))]),  # too much lost
        ("latency", [figures("int8", 200.0, ms=1.0)]),
        ("size", [figures("int8", 200.0)]),
    ],
)
def test_nothing_is_told_otherwise(bundle: Bundle, objective: str, others: list[Figures]) -> None:
    default = figures("fp32", 100.0, accuracy=accuracy(80.0))
    assert advice(with_report(bundle, objective), bench.Bench((default, *others))) is None


def test_the_objective_of_the_bundle_counts(bundle: Bundle) -> None:
    known = bench.Bench((figures("fp32", 100.0, ms=1.0), figures("int8", 50.0, ms=0.5)))
    told = advice(with_report(bundle, "latency"), known)
    assert told is not None
    assert told.startswith("int8 is 2.00x as fast as fp32, the bundle's default, by latency")


def test_an_accuracy_on_other_data_says_nothing(bundle: Bundle) -> None:
    default = figures("fp32", 100.0, accuracy=accuracy(80.0))
    other = figures("int8", 200.0, accuracy=accuracy(70.0, sha256="b"))
    assert advice(with_report(bundle), bench.Bench((default, other))) is not None


def test_load_goes_on_opening_the_default_of_the_bundle(bundle: Bundle) -> None:
    made = with_report(bundle)
    keep(made, [figures("fp32", 100.0), figures("int8", 900.0)])
    assert onnxpress.load(made.folder).variant.name == "fp32"
