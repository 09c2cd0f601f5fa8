"""exporter/encoder_precisions.py: variants of encoders that are made when asked for, and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxpress
from onnxpress.cli import main
from onnxpress.exporter.config import ExportConfig, Thresholds
from onnxpress.quantize.fp16 import Fp16Config, convert_fp16
from onnxpress.quantize.graphs import check_structure, count_ops, load_graph
from onnxpress.quantize.weight_only import WeightOnlyConfig, quantize_weights
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.providers import unusable_because
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import row_cosines
from tests.graphs import Traced, add_weight, copy_of, node, write
from tests.models import make_model

EVERY = ExportConfig(
    variants=("fp32", "int8", "int8-static", "int4"),
    embedding_bits=8,
    block_size=16,
    measure="none",
    thresholds=Thresholds(int8_rms=1.0, int4_rms=1.0),  # how close they are is tested with the passes
)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its table of positions has 64 KiB, those of tokens and segments less."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    return make_model(folder, "bert", "text-classification", max_position_embeddings=512)


@pytest.fixture(scope="module")
def made(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> onnxpress.ExportResult:
    return onnxpress.export(classifier, tmp_path_factory.mktemp("every") / "bundle", EVERY)


def variant_of(result: onnxpress.ExportResult, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in result.report["variants"] if entry["name"] == name)
    return found


def operators(bundle: Path, variant: str) -> dict[str, int]:
    return count_ops(onnx.load(bundle / variant / "model.onnx", load_external_data=False))


# int8-static and the embedding tables of int8


def test_static_int8_is_made_when_asked_for(made: onnxpress.ExportResult) -> None:
    variant = variant_of(made, "int8-static")
    assert (variant["status"], variant["precision"]) == ("passed", "int8-static")
    assert (variant["parity"]["kind"], variant["parity"]["threshold"]) == ("rms", 1.0)
    errors = [candidate["error"] for candidate in variant["candidates"]]
    assert len(errors) == 4
    assert errors == sorted(errors)
    assert [candidate["chosen"] for candidate in variant["candidates"]] == [True, False, False, False]
    assert made.report["calibration"]["source"] == "synthetic"
    assert operators(made.folder, "int8-static")["QuantizeLinear"] > 0
    assert "int8-static" in [entry.precision for entry in made.manifest.variants]
    answer = onnxpress.load(made.folder, variant="int8-static").classify("where is my parcel")
    assert answer.label in ("negative", "neutral", "positive")


def test_the_usual_variants_of_an_encoder_are_as_they_were() -> None:
    assert ExportConfig().effective_variants("text-classification") == ("fp32", "fp16", "int8")
    assert ExportConfig(target="cuda").default_precisions("feature-extraction") == ("fp32", "fp16")


@pytest.mark.parametrize("variant", ["int8", "int8-static"])
def test_embedding_tables_of_8_bits_are_a_pass_of_int8(made: onnxpress.ExportResult, variant: str) -> None:
    names = [entry["name"] for entry in variant_of(made, variant)["passes"]]
    assert names[-1] == "quantize embedding tables to int8"
    assert operators(made.folder, variant)["GatherBlockQuantized"] == 1
    assert "GatherBlockQuantized" not in operators(made.folder, "fp32")


def test_method_and_migration_are_those_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("where is my parcel\nthe order was not sent\n")
    config = ExportConfig(
        variants=("int8-static",),
        measure="none",
        calibration=(texts,),
        calibration_method="entropy",
        migration="off",
        embedding_bits=8,
        thresholds=Thresholds(int8_cosine=0.5),
    )
    result = onnxpress.export(tiny_model, tmp_path / "b", config)
    variant = variant_of(result, "int8-static")
    (candidate,) = variant["candidates"]
    assert candidate["name"].startswith("entropy ranges")
    assert "migrated" not in candidate["name"]
    # The tables of such a tiny model are not worth it, which the report says.
    assert "no embedding table that is worth quantizing" in variant["passes"][-1]["summary"]
    assert result.report["calibration"]["files"] == ["texts.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration_method": "mean"}, "unknown calibration method 'mean'; give one of: minmax, percentile, entropy"),
        ({"migration": 1.5}, r"migration alpha is 1\.5; give a number from 0 to 1"),
        ({"embedding_bits": 3}, "embedding bits are 3; give 4 or 8"),
    ],
)
def test_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ExportConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (
            ExportConfig(migration=0.5),
            "text-classification",
            "migration is for int8-static; the variants of this model",
        ),
        (ExportConfig(calibration_method="entropy"), "text-generation", "calibration_method is for encoders"),
        (ExportConfig(variants=("fp32",), embedding_bits=8), "fill-mask", "embedding_bits is for int8 or int8-static"),
        (ExportConfig(block_size=32), "fill-mask", "block_size is for int4; the variants of this model, for fill-mask"),
        (ExportConfig(variants=("int8-static",)), "text-generation", "'int8-static' is not made for text-generation"),
    ],
)
def test_options_without_a_variant_for_them_are_refused(config: ExportConfig, task: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        config.check_task(task)


def test_a_migration_that_is_no_number_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "model", "--output", str(tmp_path / "b"), "--migration", "much"]) == 2
    assert "--migration is 'much'; give a number from 0 to 1, or off" in capsys.readouterr().err


def test_static_int8_does_not_run_on_a_gpu() -> None:
    with pytest.raises(InvalidInputError, match="'int8-static' does not run on target 'cuda'"):
        ExportConfig(variants=("int8-static",), target="cuda")


# Weights of 4 bits


def test_weights_of_4_bits_are_made_when_asked_for(made: onnxpress.ExportResult) -> None:
    assert variant_of(made, "int4")["status"] == "passed"
    counts = operators(made.folder, "int4")
    # Queries, keys and values of the two layers are one product each where that was faster.
    assert counts["MatMulNBits"] in (10, 14)
    assert counts["GatherBlockQuantized"] == 1
    assert "blocks of 16" in variant_of(made, "int4")["passes"][-1]["summary"]


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_alone_keep_the_answers_of_an_encoder(traced: Traced, tmp_path: Path, bits: int) -> None:
    quantize_weights(traced.path, tmp_path / "model.onnx", WeightOnlyConfig(bits=bits))
    session = make_session(tmp_path / "model.onnx", SessionSettings(), settings=ServingSettings(1))
    for case in traced.cases:
        (found,) = session.run(None, case.feeds)
        rows = ~case.padded_rows
        expected = case.expected["sentence_embedding"][rows]
        assert row_cosines(found[rows], expected).min() > (0.99 if bits == 8 else 0.8), case.name


# bfloat16


def test_bfloat16_for_cuda_is_valid_and_rounds_weights_from_float32(traced: Traced, tmp_path: Path) -> None:
    model = copy_of(traced.graph())
    up = add_weight(model, "up", np.float32(1e6))  # beyond float16, which does not matter here
    model.graph.node.append(node("Mul", [model.graph.output[0].name, up], "large"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("large", TensorProto.FLOAT, ["batch", 32]))
    source = write(model, tmp_path / "source.onnx")
    report = convert_fp16(source, tmp_path / "wide.onnx", traced.real, Fp16Config(dtype="bfloat16"))
    assert report.float32_nodes == ()
    check_structure(tmp_path / "wide.onnx")
    kinds = {tensor.data_type for tensor in load_graph(tmp_path / "wide.onnx").graph.initializer}
    assert TensorProto.BFLOAT16 in kinds
    assert TensorProto.FLOAT16 not in kinds


def test_bfloat16_of_an_encoder_is_made_for_cuda_when_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    if unusable_because("CUDAExecutionProvider") is None:
        pytest.skip("this machine has CUDA")
    config = ExportConfig(variants=("fp32", "bf16"), target="cuda", measure="none")
    result = onnxpress.export(tiny_model, tmp_path / "b", config)
    status = {variant["name"]: variant["status"] for variant in result.report["variants"]}
    assert status == {"fp32-cpu": "passed", "fp32": "unverified", "bf16": "unverified"}
    notes = next(" ".join(variant["notes"]) for variant in result.report["variants"] if variant["name"] == "bf16")
    assert "the traced graph was compared in its place" in notes
