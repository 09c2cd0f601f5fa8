"""Decoders in half precision: what float16 writes, what it cannot hold, what is refused, and bfloat16 for CUDA."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

import onnxpress
from onnxpress.cli import main
from onnxpress.exporter import ExportConfig
from onnxpress.exporter.calibration import PrefillFeeds
from onnxpress.exporter.quiet import quiet
from onnxpress.quantize import fp16
from onnxpress.quantize.fp16 import Fp16Config, convert_fp16
from onnxpress.quantize.graphs import load_graph, save_graph
from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError, VerificationError
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.replay import Replay
from onnxpress.runtime.manifest import GenerationSettings, SessionSettings
from onnxpress.runtime.providers import unusable_because
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_graph import TinyDecoder
from tests.decoder_models import in_pytorch, make_decoder, trace
from tests.graphs import add_weight, node
from tests.models import save_decoder

PROMPTS = ["the order was not sent", "where", "my cat is not the dog , the order", "is the parcel sent ?"]
DECODER = Fp16Config(half_io=("past.", "present."), positions=("position_ids", "total_sequence_length"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ExportConfig(measure="none", variants=("fp32", "fp16"))
    return onnxpress.export(folder, tmp_path_factory.mktemp("bundles") / "b", config).folder


def load(bundle: Path, variant: str) -> Generator:
    model = onnxpress.load(bundle, variant=variant, task="text-generation")
    assert isinstance(model, Generator)
    return model


def types(path: Path) -> dict[str, int]:
    """Of inputs, outputs and weights."""
    graph = onnx.load(str(path), load_external_data=False).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


# float16 on the CPU


def test_greedy_tokens_are_those_of_pytorch_but_for_near_ties(folder: Path, bundle: Path) -> None:
    ours = load(bundle, "fp16")
    answers = ours.generate(PROMPTS, max_new_tokens=30, temperature=0.0, ignore_eos=True)
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    same = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = ours.tokenizer.backend.encode(prompt).ids
        with torch.inference_mode():
            logits = model(torch.tensor([ids + list(answer.token_ids)]), use_cache=False).logits[0, len(ids) - 1 : -1]
        behind = logits.max(dim=-1).values - logits.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert behind.max() <= 0.02 * logits.abs().max()
        same += int((behind == 0).sum())
    assert same >= 0.95 * 30 * len(PROMPTS)
    ours.close()


def test_logits_agree_to_five_thousandths(bundle: Path) -> None:
    row = list(range(3, 40))
    found, expected = (last_logits(bundle / name / "model.onnx", row) for name in ("fp16", "fp32"))
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max()


def test_weights_and_cache_take_half_the_space(bundle: Path) -> None:
    sizes = {name: (bundle / name / "model.onnx.data").stat().st_size for name in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    layouts = {}
    for name in sizes:
        model = load(bundle, name)
        layouts[name] = model.engine.decoder.cache.layout
        model.close()
    assert layouts["fp32"].dtype == "float32"
    assert layouts["fp16"].dtype == "float16"
    assert layouts["fp32"].token_bytes == 2 * layouts["fp16"].token_bytes


def test_logits_stay_in_float32(bundle: Path) -> None:
    found = types(bundle / "fp16" / "model.onnx")
    assert found["logits"] == TensorProto.FLOAT
    assert {kind for name, kind in found.items() if name.startswith(("past.", "present."))} == {TensorProto.FLOAT16}


def test_the_gate_runs_again_without_pytorch(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--variant", "fp16"]) == 0
    assert "fp16: passed" in capsys.readouterr().out


def test_a_graph_that_computes_something_else_does_not_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(source: Path, target: Path, *arguments: Any) -> Any:
        report = convert_fp16(source, target, *arguments)
        model = load_graph(target)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("inv_freq"):  # positions turn too fast
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
        save_graph(model, target)
        return report

    monkeypatch.setattr(fp16, "convert_fp16", convert)
    config = ExportConfig(measure="none", variants=("fp16",), cache=False)
    with pytest.raises(VerificationError, match=r"fp16 differs from PyTorch on .* root mean square error"):
        onnxpress.export(folder, tmp_path / "b", config)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "mixtral"])  # a split, ALiBi, experts
def test_other_families_agree_with_pytorch_and_are_valid_in_bfloat16(tmp_path: Path, family: str) -> None:
    model = make_decoder(family)
    source, facts = trace(model, tmp_path)
    rows, following = [[5, 9, 31, 7, 60, 11], [8]], [[3, 4, 5], [90, 1, 2]]
    convert_fp16(source, tmp_path / "half.onnx", PrefillFeeds(source, rows), DECODER)
    settings = GenerationSettings(
        layers=facts.layers,
        kv_heads=facts.kv_heads,
        head_dims=facts.head_dims,
        context=facts.context,
        vocabulary=facts.vocabulary,
        eos_ids=(),
        bos_id=None,
        defaults={},
        chat_template=None,
        special_tokens={},
    )
    replay = Replay(make_session(tmp_path / "half.onnx", SessionSettings(), settings=ServingSettings(1)), settings)
    found = np.stack([logits.copy() for logits in replay.steps(rows, following)], axis=1)
    expected = np.stack([in_pytorch(model, a + b)[len(a) - 1 :] for a, b in zip(rows, following, strict=True)])
    assert np.sqrt(np.square(found - expected).mean()) < 0.03 * np.sqrt(np.square(expected).mean())
    convert_fp16(source, tmp_path / "wide.onnx", [], dataclasses.replace(DECODER, dtype="bfloat16"))
    # The CPU has no kernels; of types that an operator cannot have it would complain before.
    with pytest.raises(InvalidBundleError, match="Could not find an implementation"):
        make_session(tmp_path / "wide.onnx", SessionSettings(), settings=ServingSettings(1))


# What float16 cannot hold


def tiny(folder: Path, **scales: float) -> Path:
    """A graph whose weights of these names are multiplied."""
    path = TinyDecoder().save(folder / "model.onnx")
    model = load_graph(path)
    for tensor in model.graph.initializer:
        if (scale := scales.get(tensor.name.rpartition(".")[2])) is not None:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name))
    save_graph(model, path)
    return path


def last_logits(path: Path, row: list[int]) -> Any:
    session = make_session(path, SessionSettings(), settings=ServingSettings(1))
    return session.run(["logits"], PrefillFeeds(path, [row])[0])[0][0, -1]


def test_what_is_too_large_stays_in_float32_and_attention_does_not(tmp_path: Path) -> None:
    source = tiny(tmp_path, up=1e5, down=1e-5, k=9e3, q=1e-4)
    row = [5, 9, 31, 7]
    report = convert_fp16(source, tmp_path / "half.onnx", PrefillFeeds(source, [row]), DECODER)
    kinds = [entry.partition("_")[0] for entry in report.float32_nodes]
    assert kinds.count("Mul") == 2  # of the gate and what is too large, in each of two layers
    assert "RotaryEmbedding" in kinds  # of keys that are large, though not too large for the cache
    assert "GroupQueryAttention" not in kinds
    assert all("reaches" in entry for entry in report.float32_nodes)
    np.testing.assert_allclose(last_logits(tmp_path / "half.onnx", row), last_logits(source, row), atol=0.05)
    convert_fp16(source, tmp_path / "all.onnx", [], dataclasses.replace(DECODER, headroom=1e-4))
    assert not np.allclose(last_logits(tmp_path / "all.onnx", row), last_logits(source, row), atol=0.5)


@pytest.mark.parametrize("kept", [True, False])
def test_angles_of_far_positions_are_computed_in_float32(tmp_path: Path, kept: bool) -> None:
    graph = helper.make_graph(
        [
            node("Unsqueeze", ["position_ids", "last"], "column"),
            node("Cast", ["column"], "position", to=TensorProto.FLOAT),
            node("MatMul", ["position", "frequencies"], "angles"),
            node("Cos", ["angles"], "cos"),
            node("Gather", ["table", "input_ids"], "rows"),
            node("Mul", ["rows", "cos"], "logits"),
        ],
        "angles",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "position_ids")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    add_weight(model, "last", np.array([2]))
    add_weight(model, "frequencies", np.array([[1.0, 0.1]], np.float32))
    add_weight(model, "table", np.ones((4, 2), np.float32))
    onnx.save(model, tmp_path / "model.onnx")
    config = DECODER if kept else Fp16Config()
    report = convert_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx", [], config)
    assert [entry.partition(" ")[0] for entry in report.float32_nodes] == (
        ["position", "angles", "cos"] if kept else []
    )
    feeds = {"input_ids": np.array([[1, 2]]), "position_ids": np.array([[3, 3001]])}
    found, expected = (run(tmp_path / name, feeds) for name in ("half.onnx", "model.onnx"))
    assert (np.abs(found - expected).max() < 1e-3) == kept


def run(path: Path, feeds: dict[str, Any]) -> Any:
    return make_session(path, SessionSettings(), settings=ServingSettings(1)).run(None, feeds)[0]


# bfloat16


def test_bfloat16_is_refused_where_it_does_not_run() -> None:
    with pytest.raises(InvalidInputError, match=r"'bf16' does not run on target 'cpu', .*; it is for: cuda"):
        ExportConfig(variants=("bf16",))


def test_bfloat16_weights_are_rounded_from_float32(tmp_path: Path) -> None:
    source = tiny(tmp_path, up=1e5, down=1e-9)
    config = dataclasses.replace(DECODER, dtype="bfloat16")
    report = convert_fp16(source, tmp_path / "wide.onnx", [], config)
    assert report.name == "convert to bf16"
    before = {tensor.name: tensor for tensor in load_graph(source).graph.initializer}
    after = load_graph(tmp_path / "wide.onnx").graph.initializer
    for tensor in after:
        expected = numpy_helper.to_array(before[tensor.name])
        if expected.dtype == np.float32:
            assert tensor.data_type == TensorProto.BFLOAT16
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected.astype(ml_dtypes.bfloat16))
    found = types(tmp_path / "wide.onnx")
    assert found["logits"] == TensorProto.FLOAT
    assert found["past.0.key"] == found["present.1.value"] == TensorProto.BFLOAT16
    assert TensorProto.FLOAT16 not in found.values()


def test_variants_for_cuda_are_made_and_marked(folder: Path, tmp_path: Path) -> None:
    if unusable_because("CUDAExecutionProvider") is None:
        pytest.skip("this machine has CUDA")
    result = onnxpress.export(folder, tmp_path / "b", ExportConfig(measure="none", target="cuda"))
    status = {variant.name: variant.status for variant in result.manifest.variants}
    assert status == {"fp32-cpu": "passed", **dict.fromkeys(("fp32", "fp16", "bf16"), "unverified")}
    assert result.manifest.default_variant == "fp32-cpu"
    notes = {variant["name"]: " ".join(variant["notes"]) for variant in result.report["variants"]}
    assert "the traced graph was compared in its place" in notes["bf16"]
    assert "the traced graph" not in notes["fp16"]
    with pytest.warns(UserWarning, match="not verified"), pytest.raises(InvalidBundleError, match="cannot load"):
        onnxpress.load(result.folder, variant="bf16", providers="cpu", task="text-generation")
