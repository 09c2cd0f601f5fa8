"""bench/gpu.py on a machine without a GPU: what it says is missing, and the whole of it on the CPU."""

from __future__ import annotations

import ctypes
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from bench import gpu
from bench.gpus import checking, decoder, encoder, models, needs, tables
from onnxpress.exporter.quiet import quiet
from onnxpress.runtime.providers import CUDA, unusable_because
from tests.fake_cuda import FakeCuda

Capture = pytest.CaptureFixture[str]
without_cuda = pytest.mark.skipif(unusable_because(CUDA) is None, reason="this machine has CUDA")


class Driver(FakeCuda):
    """libcuda of a machine, as far as it is asked."""

    def __init__(self, *, count: int = 1, version: int = 13000, capability: tuple[int, int] = (9, 0), fails: str = ""):
        super().__init__(fails=fails, devices=count)
        self.version = version
        self.capability = capability

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, part: Any, attribute: int, device: Any) -> int:  # noqa: N802
        part._obj.value = self.capability[attribute - 75]
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that pretends what is there; by default everything."""

    def pretend(
        driver: Driver | None = None, wheel: str = "13.0", absent: Sequence[str] = (), has_torch: bool = True
    ) -> None:
        def load(name: str) -> Any:
            if name in absent:
                raise OSError(name)
            return driver or Driver()

        providers = [CUDA, "CPUExecutionProvider"] if wheel else ["CPUExecutionProvider"]
        monkeypatch.setattr(needs, "ctypes", types.SimpleNamespace(**{**vars(ctypes), "CDLL": load}))
        monkeypatch.setattr(needs, "preload", lambda: None)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        monkeypatch.setattr(onnxruntime, "cuda_version", wheel, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_torch)

    return pretend


@without_cuda
def test_what_is_missing_here_is_said_and_the_status_is_2(capsys: Capture) -> None:
    assert gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, *lines = captured.err.splitlines()
    assert first == "bench.gpu: this machine lacks what the benchmark needs:"
    assert lines
    assert all(line.startswith("  - ") for line in lines)


def test_nothing_is_missing_where_everything_is(machine: Any) -> None:
    machine()
    assert needs.missing() == []


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"absent": ["libcuda.so.1"]}, "the NVIDIA driver (libcuda.so.1) is not installed"),
        ({"driver": Driver(fails="cuInit")}, "does not start (CUDA error 999)"),
        ({"driver": Driver(count=0)}, "lists no device"),
        ({"driver": Driver(version=12080)}, "the NVIDIA driver is for CUDA 12.8"),
        ({"driver": Driver(capability=(7, 5))}, "compute capability 7.5; 8.0 or more is needed"),
        ({"wheel": ""}, "has no CUDA provider; uninstall it and install onnxruntime-gpu"),
        ({"wheel": "12.8"}, "is built for CUDA 12.8"),
        ({"absent": ["libcudnn.so.9", "libcublas.so.13"]}, "libcublas.so.13, libcudnn.so.9: not found"),
        ({"has_torch": False}, "finds no GPU; install a build of PyTorch for CUDA 13"),
    ],
)
def test_each_missing_thing_is_one_sentence(machine: Any, there: dict[str, Any], message: str) -> None:
    machine(**there)
    (found,) = needs.missing()
    assert message in found


def test_missing_packages_are_named(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    assert [line.split(";")[0] for line in needs.missing()] == [
        "onnxruntime is not installed",
        "torch is not installed",
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[models.Pressed, models.Pressed]:
    """The small encoder and the small decoder."""
    folder = tmp_path_factory.mktemp("models")
    with quiet():
        return models.make_encoder(folder, small=True), models.make_decoder(folder, small=True)


def options_of(pressed: models.Pressed, **more: Any) -> dict[str, Any]:
    return {
        "bundle": str(pressed.bundle),
        "model": str(pressed.model),
        "variant": models.VARIANT,
        "device": "cpu",
        **more,
    }


def test_what_the_checks_find_on_the_cpu(made: tuple[models.Pressed, models.Pressed]) -> None:
    for pressed, operator in zip(made, ("MultiHeadAttention", "GroupQueryAttention"), strict=True):
        found = checking.check(options_of(pressed))
        assert found["passed"]
        assert found["captures"] == ""
        assert found["nodes"].keys() == {"CPUExecutionProvider"}
        assert found["nodes"]["CPUExecutionProvider"][operator] == 2


def test_all_encoders_compute_the_same(made: tuple[models.Pressed, models.Pressed]) -> None:
    options = options_of(made[0])
    ids = np.random.default_rng(0).integers(10, 500, (3, 7))
    mask = (np.arange(7) < [[7], [3], [5]]).astype(np.int64)
    expected = encoder.ENGINES["PyTorch"](options)
    for engine in ("onnxpress", "onnxpress graphs"):
        encode = encoder.ENGINES[engine](options)
        for rows in (slice(0, 3), slice(0, 2), slice(1, 3)):  # the second shape twice, with other tokens
            np.testing.assert_allclose(encode(ids[rows], mask[rows]), expected(ids[rows], mask[rows]), atol=5e-3)


def test_an_encoder_is_timed_by_shape_and_by_length() -> None:
    seen: list[tuple[int, ...]] = []

    def encode(ids: encoder.Ids, mask: encoder.Ids) -> encoder.Vectors:
        assert ((ids > 0) == (mask > 0)).all()
        seen.append((*ids.shape, int(mask.sum())))
        return ids

    answer = encoder.time_shape(encode, 2, 5, 100, seconds=0)
    assert seen == [(2, 5, 10)] * 8  # 3 that warm up
    assert 0 < answer["p50_ms"] <= answer["p95_ms"]
    seen.clear()
    assert encoder.time_mixed(encode, [3, 9] * 20, 100, rounds=1)["texts_per_second"] > 0
    assert seen == [(32, 9, 20 * 9 + 12 * 3), (8, 3, 24)] * 2


@pytest.mark.parametrize("engine", gpu.DECODERS)
def test_every_decoder_writes_what_the_model_would(made: tuple[models.Pressed, models.Pressed], engine: str) -> None:
    new = 6
    options = options_of(made[1], engine=engine, most_prompts=2, prompt_tokens=5, new_tokens=new)
    generate = decoder.load(options)
    model = transformers.AutoModelForCausalLM.from_pretrained(made[1].model, dtype=torch.float32)
    for prompts in ([[20, 30, 40, 50, 60], [9, 8, 7, 6, 5]], [[70, 71, 72, 73, 74], [4, 3, 2, 1, 11]]):
        answers = generate(prompts, new)
        with torch.inference_mode():
            logits = model(torch.tensor([a + b for a, b in zip(prompts, answers, strict=True)])).logits[:, 4:-1]
        chosen = logits.gather(2, torch.tensor(answers)[:, :, None])[:, :, 0]
        assert (logits.max(dim=2).values - chosen).max() < 0.01 * logits.abs().max()


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_the_cpu(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "SHAPES", ((1, 8), (4, 8)))
    assert gpu.main(["--dry-run", "--rounds", "1", "--seconds", "0.01", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("No value travels between CPU and GPU") == 2
    assert out.count("inputs: passed;") == 2
    assert "| encoder | 1 x 8, ms | 1 x 8, texts/s | 4 x 8, ms | 4 x 8, texts/s | mixed, texts/s |" in out
    for engine in (*gpu.ENCODERS, *gpu.DECODERS):
        assert f"\n| {engine} | " in out
    assert out.splitlines()[-1] == "a dry run: everything works, and no figure means anything"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--dry-run", "--require"], "figures of a dry run mean nothing"),
        (["--output", "nowhere.md"], "nowhere.md cannot be read"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: list[str], message: str, capsys: Capture) -> None:
    assert gpu.main(options) == 2
    assert message in capsys.readouterr().err


# What is made of the answers

CHECKS = {
    "nodes": {"CUDAExecutionProvider": {"MatMul": 4, "Add": 1}, "CPUExecutionProvider": {"Shape": 2}},
    "captures": "",
    "passed": True,
    "sentence": "passed",
    "kind": "rms",
    "bound": 0.03,
    "min_cosine": 0.9999,
    "rms_error": 0.001,
    "cases": 8,
}


def figures() -> dict[str, Any]:
    shape = {"p50_ms": 1.0, "p95_ms": 2.0, "texts_per_second": 1000.0}
    rates = {"prefill": 5000.0, "decode": 200.0, "first_seconds": 0.01}
    by_shape = {tables.shape_name(*each): shape for each in gpu.SHAPES}
    return {
        "device": "cuda",
        "checks": {"encoder": CHECKS, "decoder": CHECKS},
        "encoder": {
            name: by_shape if "graphs" in name else {**by_shape, "mixed": {"texts_per_second": 900.0}}
            for name in gpu.ENCODERS
        },
        "decoder": {name: {str(batch): rates for batch in gpu.BATCHES} for name in gpu.DECODERS},
    }


def test_limits_are_met_at_equal_speed_and_missed_by_a_node_on_the_cpu_or_a_slower_step() -> None:
    found = figures()
    assert all(limit.met for limit in gpu.limits_of(found))
    found["checks"] = {"encoder": {**CHECKS, "captures": "a node travels"}, "decoder": {**CHECKS, "passed": False}}
    found["decoder"]["onnxpress graphs"] = {"1": {"prefill": 1.0, "decode": 100.0, "first_seconds": 1.0}}
    missed = [limit.name for limit in gpu.limits_of(found) if not limit.met]
    assert missed == [
        "encoder: computed on the CPU",
        "decoder: FP16 agrees with PyTorch",
        "decode 1, CUDA graphs / without",
    ]


def test_the_document_goes_between_the_marks_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gpu.md"
    path.write_text(f"before\n\n{tables.BEGIN}\n\nold\n\n{tables.END}\n\nafter\n")
    facts = {
        "date": "2026-11-25T00:00:00Z", "gpu": "a GPU", "cpu": "", "system": "Linux", "python": "3.11",
        "versions": {"onnxruntime": "1.32.0"},
    }  # fmt: skip
    tables.require_marks(path)
    for _ in range(2):
        tables.write(path, tables.document(figures(), facts))
    text = path.read_text()
    assert text.startswith(f"before\n\n{tables.BEGIN}\n\n2026-11-25, a GPU; Linux")
    assert text.endswith(f"\n\n{tables.END}\n\nafter\n")
    assert "old" not in text
    assert text.count("5 on CUDAExecutionProvider, 2 on CPUExecutionProvider. On the CPU: 2 Shape.") == 2
    assert "| onnxpress graphs | 1.00 | 1,000 | 1.00 | 1,000 | - |" in text


def test_a_file_without_marks_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "gpu.md").write_text("no marks")
    assert gpu.main(["--output", str(tmp_path / "gpu.md")]) == 2
    assert "has no place for the figures" in capsys.readouterr().err


def test_docs_have_a_place_for_the_figures() -> None:
    tables.require_marks(Path(__file__).parents[1] / "docs" / "gpu.md")
