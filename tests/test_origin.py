"""runtime/origin.py: a bundle says when its figures are of another machine, and when its 8 bits were chosen for one."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

import onnxpress
from onnxpress.cli import main
from onnxpress.runtime import bench, origin
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.machine import describe_machine, onnxruntime_version
from onnxpress.runtime.origin import differences, saturation_warning, stale_notice
from tests.elsewhere import AVX2, VNNI, change_manifest

LATENCY = ({"tokens": 16, "p50_ms": 1.0},)
RATES = ({"batch": 8, "texts_per_second": 900.0},)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def elsewhere(bundle_copy: Path) -> Path:
    """A bundle made on another processor, whose 8-bit weights fit this one whichever it is."""
    machine = {"cpu": "Xeon", "cores": 96, "cpu_features": ["avx2", "avx10"]}
    return change_manifest(bundle_copy, machine=machine, versions={"onnxruntime": "1.28.0"})


@pytest.fixture
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has AVX2 and no more."""
    monkeypatch.setattr(origin, "describe_machine", lambda: AVX2)


def test_a_bundle_made_here_has_nothing_to_say(bundle_copy: Path, capsys: Capture) -> None:
    bundle = open_bundle(change_manifest(bundle_copy))
    assert differences(bundle.manifest) == ()
    assert stale_notice(bundle) is None
    assert main(["inspect", str(bundle_copy)]) == 0
    assert capsys.readouterr().err == ""


def test_what_differs_is_named(elsewhere: Path) -> None:
    here, bundle = describe_machine(), open_bundle(elsewhere)
    notice = stale_notice(bundle)
    assert notice is not None
    assert f"processor Xeon ({here.architecture}) there, {here.cpu}" in notice
    assert "no avx10 here" in notice
    assert f"96 cores there, {here.cores} here" in notice
    assert f"onnxruntime 1.28.0 there, {onnxruntime_version()} here" in notice
    assert notice.endswith(f"measure here with: onnxpress bench {elsewhere}")
    assert "GPU" not in notice


def test_features_of_this_machine_alone_are_named_too(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_manifest(bundle_copy, machine=dataclasses.asdict(AVX2) | {"cpu_features": ["avx2"]})
    monkeypatch.setattr(origin, "describe_machine", lambda: AVX2)
    assert differences(open_bundle(bundle_copy).manifest) == ("avx, fma here only",)


def test_a_bundle_without_figures_has_none_that_could_be_old(elsewhere: Path) -> None:
    change_manifest(elsewhere, latency_ms=None)
    assert stale_notice(open_bundle(elsewhere)) is None


def test_a_bundle_of_an_unknown_machine_says_so(bundle_copy: Path) -> None:
    path = change_manifest(bundle_copy) / "onnxpress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": {}, "versions": {}}))
    found = differences(open_bundle(bundle_copy).manifest)
    assert found[0].startswith("processor unknown there, ")
    assert f"onnxruntime None there, {onnxruntime_version()} here" in found


def test_figures_that_were_measured_here_are_not_old(elsewhere: Path) -> None:
    bundle = open_bundle(elsewhere)
    figures = bench.Figures("fp32", "2026-01-01T00:00:00Z", {}, LATENCY, RATES, None, 0.3)
    bench.keep(bundle, [figures])
    assert stale_notice(bundle) is None
    assert differences(bundle.manifest)


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--json"], ["report"], ["run"]])
def test_commands_say_it_in_one_line_on_stderr(
    elsewhere: Path, tmp_path: Path, capsys: Capture, command: list[str]
) -> None:
    (tmp_path / "in.txt").write_text("the cat\n")
    more = ["-i", str(tmp_path / "in.txt")] if command == ["run"] else []
    assert main([*command, str(elsewhere), *more]) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("onnxpress: the bundle's figures were measured elsewhere")
    assert "measured elsewhere" not in captured.out


def test_programs_find_it_beside_the_manifest(elsewhere: Path, capsys: Capture) -> None:
    assert main(["inspect", str(elsewhere), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["here"]
    assert here["differences"] == list(differences(open_bundle(elsewhere).manifest))
    assert (here["warnings"], here["variants"]) == ([], [])


def test_quiet_runs_do_not_say_it(elsewhere: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in.txt").write_text("the cat\n")
    assert main(["run", str(elsewhere), "-i", str(tmp_path / "in.txt"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_load_logs_it_once(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="onnxpress")
    for _ in range(2):
        onnxpress.load(elsewhere)
    (record,) = [record for record in caplog.records if not getattr(record, "routine", False)]
    assert (record.name, record.levelno) == ("onnxpress", logging.INFO)
    assert "measured elsewhere" in record.message


# 8 bits of another kind of processor


@pytest.mark.usefixtures("old_processor")
def test_signed_weights_of_a_processor_with_vnni_are_warned_about_on_one_without(bundle_copy: Path) -> None:
    bundle = open_bundle(change_manifest(bundle_copy, machine=dataclasses.asdict(VNNI)))
    warning = saturation_warning(bundle, bundle.manifest.variant("int8"))
    assert warning is not None
    assert warning.startswith(
        "variant 'int8' has signed 8-bit weights, which are right for the processor it was made on"
    )
    assert "(New Xeon)" in warning
    assert "session.x64quantprecision" in warning
    assert "--eval FILE" in warning
    assert saturation_warning(bundle, bundle.manifest.variant("fp32")) is None


@pytest.mark.usefixtures("old_processor")
def test_an_accuracy_that_was_measured_here_needs_no_warning(bundle_copy: Path) -> None:
    bundle = open_bundle(change_manifest(bundle_copy, machine=dataclasses.asdict(VNNI)))
    timed = bench.Figures("int8", "2026-01-01T00:00:00Z", {}, LATENCY, RATES, None, 0.3)
    bench.keep(bundle, [timed])
    assert saturation_warning(bundle, bundle.manifest.variant("int8")) is not None
    accuracy = bench.Accuracy({"spearman": 80.0}, "Spearman", ("pairs.tsv",), "a", 24)
    bench.keep(bundle, [dataclasses.replace(timed, accuracy=accuracy)])
    assert saturation_warning(bundle, bundle.manifest.variant("int8")) is None


@pytest.mark.usefixtures("old_processor")
def test_weights_that_were_made_for_such_a_processor_are_not(bundle_copy: Path) -> None:
    machine = dataclasses.asdict(AVX2) | {"cpu": "Other Xeon"}
    bundle = open_bundle(change_manifest(bundle_copy, machine=machine))
    assert stale_notice(bundle) is not None
    assert saturation_warning(bundle, bundle.manifest.variant("int8")) is None


def test_a_processor_with_dot_products_takes_all(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "describe_machine", lambda: VNNI)
    for machine in (AVX2, VNNI):
        bundle = open_bundle(change_manifest(bundle_copy, machine=dataclasses.asdict(machine)))
        assert saturation_warning(bundle, bundle.manifest.variant("int8")) is None


@pytest.mark.usefixtures("old_processor")
def test_load_logs_it_as_a_warning(bundle_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_manifest(bundle_copy, machine=dataclasses.asdict(VNNI))
    onnxpress.load(bundle_copy, variant="int8")
    levels = [record.levelname for record in caplog.records if record.name == "onnxpress"]
    assert levels == ["WARNING"]  # INFO is not shown unless a program asks for it


@pytest.mark.usefixtures("old_processor")
def test_commands_warn_of_the_variant_that_serves(bundle_copy: Path, tmp_path: Path, capsys: Capture) -> None:
    change_manifest(bundle_copy, machine=dataclasses.asdict(VNNI), default_variant="int8")
    (tmp_path / "in.txt").write_text("the cat\n")
    assert main(["run", str(bundle_copy), "-i", str(tmp_path / "in.txt")]) == 0
    notice, warning = capsys.readouterr().err.splitlines()
    assert notice.startswith("onnxpress: the bundle's figures")
    assert warning.startswith("onnxpress: warning: variant 'int8'")
    assert main(["run", str(bundle_copy), "-i", str(tmp_path / "in.txt"), "--variant", "fp32"]) == 0
    assert "warning" not in capsys.readouterr().err
