"""`onnxpress doctor`: every provider with its reason, limits, versions and the plan, on real and made-up machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxpress.cli import main
from onnxpress.runtime import diagnosis
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.tuned import Tuned, keep_tuned
from tests.fake_machine import CPU, CUDA, NO_DRIVER, TENSORRT, FakeMachine, install, without_gpu


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["doctor", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(doctor(capsys, "--json", *arguments))
    return found


def test_this_machine_can_serve_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys)
    statuses = {status["name"]: status for status in found["providers"]}
    assert statuses[CPU]["reason"] is None
    assert {CUDA, TENSORRT} <= statuses.keys()
    assert found["limits"]["allowed_cpus"] <= found["limits"]["logical_cpus"]
    assert found["machine"]["cores"] == found["serving"][0]["threads"]
    assert found["versions"]["numpy"]
    assert found["onnxruntime"]["version"]


def test_settings_that_tune_kept_are_in_the_plan(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "cache"))  # other tests load copies of the same bundle
    bundle = open_bundle(bundle_copy)
    variant = bundle.manifest.variant(None).name
    assert as_json(capsys, str(bundle_copy))["serving"][0]["tuned_for"] is None
    created = "2026-01-01T00:00:00Z"
    keep_tuned(bundle, Tuned(variant, "latency", "questions, 1 at a time", 1.2, created, ServingSettings(threads=1)))
    serving = as_json(capsys, str(bundle_copy))["serving"][0]
    assert (serving["threads"], serving["tuned_for"]) == (1, "latency of questions, 1 at a time")
    assert "1 thread, tuned for latency of questions" in " ".join(doctor(capsys, str(bundle_copy)).split())


def test_the_gpu_wheel_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, without_gpu())
    monkeypatch.setattr(diagnosis, "cgroup_cpus", lambda: 1.5)
    monkeypatch.setattr(diagnosis, "cgroup_memory_bytes", lambda: 2 * 10**9)
    shown = " ".join(doctor(capsys).split())
    assert "1.5 CPUs from the cgroup" in shown
    assert "2.0 GB from the cgroup" in shown
    assert "onnxruntime-gpu 1.31.1, built for CUDA 13.0" in shown
    assert f"{CUDA} no {NO_DRIVER}, and libcublasLt.so.13" in shown
    assert "-> this machine seems to have no GPU of NVIDIA, and pip install 'onnxruntime-gpu[cuda,cudnn]'" in shown
    assert "'tensorrt-cu13-libs==10.*'" in shown
    assert f"{CPU} yes" in shown
    assert "a variant for cuda is served on CPUExecutionProvider instead; CUDAExecutionProvider cannot be used" in shown


def test_a_gpu_is_shown_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, FakeMachine(missing=["libcudnn.so.9"]))
    shown = " ".join(doctor(capsys).split())
    assert f"{CUDA} yes NVIDIA L4, compute capability 8.9 no libcudnn.so.9: convolutions" in shown
    assert f"{TENSORRT} no libcudnn.so.9 is missing -> pip install nvidia-cudnn-cu13 brings it" in shown
    assert "a variant for cuda is served on CUDAExecutionProvider, which it was made for" in shown


def test_a_provider_that_does_not_start_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, FakeMachine((CUDA, CPU), starts={CUDA: "out of memory"}))
    assert f"{CUDA} no it does not start: out of memory" in " ".join(doctor(capsys).split())


def test_a_bundle_gets_a_plan(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (serving,) = as_json(capsys, str(tiny_bundle), "--variant", "fp32")["serving"]
    assert serving["variant"] == "fp32"
    assert serving["providers"] == [CPU]
    assert serving["options"] == {CPU: {}}
    assert serving["verified"] is True
    assert serving["as_expected"] is True
    shown = doctor(capsys, str(tiny_bundle))
    assert "verified on this provider" in shown
    assert "is served on CPUExecutionProvider, which it was made for" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere"),
        (["--variant", "fp32"], "--variant is of a bundle; give the bundle, too"),
    ],
)
def test_bad_input_is_a_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("onnxpress: ")
    assert sentence in captured.err
    assert captured.out == ""


def test_an_unknown_variant_is_refused(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_bundle), "--variant", "int3"]) == 2
    assert "no variant 'int3'; it has:" in capsys.readouterr().err
