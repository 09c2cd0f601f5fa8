"""exporter/onnx_file/: files of other exporters, pressed, against the PyTorch models they were made from."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxpress
from onnxpress.exporter import ExportConfig, Thresholds, fusion
from onnxpress.exporter.baseline import baseline_command
from onnxpress.exporter.loading import load_model
from onnxpress.exporter.onnx_file.reference import load_onnx
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.source import resolve_source
from onnxpress.exporter.tasks import resolve_task
from onnxpress.runtime.errors import InvalidInputError, OnnxpressError, UnsupportedModelError, VerificationError
from tests.given_onnx import describe, edit, export, load, optimum_folder
from tests.graphs import Traced, run_plain
from tests.in_pytorch import serve_in_pytorch
from tests.models import make_embedder, make_model, write_json

FP32 = ExportConfig(measure="none", variants=("fp32",))
TEXTS = ["the order was not sent", "where is my parcel?", "dog", "", "the cat sat. " * 30]
PAIRS = [("the order was sent", "where is my order"), ("the cat, the dog", "dog")]
WORK: dict[str, Callable[[Any], Any]] = {
    "feature-extraction": lambda model: model.embed(TEXTS).tolist(),
    "text-classification": lambda model: model.classify([*TEXTS, *PAIRS]),
    "zero-shot-classification": lambda model: model.zero_shot(TEXTS[:3], ["order", "cat"]),
    "text-ranking": lambda model: model.rank("where is my order", TEXTS[:3]),
    "token-classification": lambda model: model.tag(TEXTS),
    "question-answering": lambda model: model.answer(["where is the order"] * 2, [TEXTS[0], TEXTS[4]]),
    "fill-mask": lambda model: model.fill(["the [MASK] was sent", "[MASK] [MASK]", "where is my [MASK]?"]),
}


def values(answer: Any) -> list[Any]:
    """Every number and text of an answer, in order."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        answer = [getattr(answer, field.name) for field in dataclasses.fields(answer)]
    if isinstance(answer, dict):
        answer = [part for item in answer.items() for part in item]
    if isinstance(answer, list | tuple):
        return [value for part in answer for value in values(part)]
    return [answer]


def same(found: Any, expected: Any) -> None:
    assert values(found) == [
        pytest.approx(value, abs=2e-5) if isinstance(value, float) else value for value in values(expected)
    ]


def press(path: Path, target: Path, config: ExportConfig = FP32) -> Any:
    """The bundle of an ONNX file or folder, loaded."""
    return onnxpress.load(onnxpress.export(path, target, config).folder)


def reference(path: Path, task: str | None = None) -> Any:
    """The ONNX file as exports see it."""
    source = resolve_source(str(path), FP32)
    return load_onnx(source, resolve_task(task, source), FP32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny BERT for each task, with weights for PyTorch."""
    place = tmp_path_factory.mktemp("pytorch")
    with quiet():
        return {task: make_model(place / task, "bert", task) for task in WORK}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> dict[str, Path]:
    """The same models as optimum exports them."""
    place = tmp_path_factory.mktemp("optimum")
    return {task: optimum_folder(folder, place / task, task) for task, folder in folders.items()}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Path]) -> Path:
    """A folder whose ONNX file has its weights in another file."""
    folder = shutil.copytree(given["text-classification"], tmp_path_factory.mktemp("beside") / "given")
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    return Path(folder)


# --- what comes out ---


@pytest.mark.parametrize("task", WORK)
def test_a_bundle_answers_as_pytorch_does(
    task: str, folders: dict[str, Path], given: dict[str, Path], tmp_path: Path
) -> None:
    result = onnxpress.export(given[task], tmp_path / "bundle", dataclasses.replace(FP32, task=task))
    model = onnxpress.load(result.folder)
    same(WORK[task](model), WORK[task](serve_in_pytorch(folders[task], task)))
    manifest = result.manifest
    names = ["input_ids", "attention_mask", "token_type_ids", *(["mask_positions"] if task == "fill-mask" else [])]
    assert [tensor.name for tensor in manifest.inputs] == names
    assert all(tensor.shape[0] == "batch" for tensor in (*manifest.inputs, *manifest.outputs))
    assert manifest.source.location == str(given[task])
    assert result.report["baseline"]["name"] == "the ONNX file as given"


@pytest.mark.parametrize("task", [task for task in WORK if task != "zero-shot-classification"])
def test_the_task_is_seen_by_the_outputs(task: str, given: dict[str, Path]) -> None:
    assert resolve_task(None, resolve_source(str(given[task]), FP32)) == task


@pytest.mark.parametrize(
    ("family", "task"), [("roberta", "fill-mask"), ("distilbert", "question-answering"), ("t5", "feature-extraction")]
)
def test_what_is_known_of_a_model_is_what_pytorch_knows(family: str, task: str, tmp_path: Path) -> None:
    with quiet():
        folder = make_model(tmp_path / "model", family, task)
        expected = load_model(resolve_source(str(folder), FP32), task, FP32)
    inputs = [tensor.name for tensor in expected.inputs if tensor.name != "mask_positions"]
    found = reference(optimum_folder(folder, tmp_path / "given", task, inputs=inputs), task)
    for name in ("settings", "limits", "inputs", "outputs"):
        assert getattr(found, name) == getattr(expected, name)
    for text in (*TEXTS, "订单 🙂"):
        assert found.backend.encode(text).ids == expected.backend.encode(text).ids


def test_every_variant_is_made_of_a_file_with_weights_beside_it(folders: dict[str, Path], tmp_path: Path) -> None:
    task = "text-classification"
    folder = optimum_folder(folders[task], tmp_path / "given", task, opset=18, new=True)
    assert (folder / "model.onnx.data").is_file()
    result = onnxpress.export(folder, tmp_path / "bundle", ExportConfig(measure="none"))
    assert {variant["name"]: variant["status"] for variant in result.report["variants"]} == dict.fromkeys(
        ("fp32", "fp16", "int8"), "passed"
    )
    expected = WORK[task](serve_in_pytorch(folders[task], task))
    for variant, bound in (("fp32", 2e-5), ("fp16", 0.02), ("int8", 0.2)):
        found = WORK[task](onnxpress.load(result.folder, variant=variant))
        for one, other in zip(found, expected, strict=True):
            assert one.scores == pytest.approx(other.scores, abs=bound)
    for path in result.folder.glob("*/model.onnx"):
        assert str(Path.home()).encode() not in path.read_bytes()  # torch writes stack traces into its files
        assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize("task", ["fill-mask", "token-classification"])
def test_pytorch_is_not_imported(task: str, given: dict[str, Path], tmp_path: Path) -> None:
    program = (
        "import sys, onnxpress\n"
        "onnxpress.export(sys.argv[1], sys.argv[2], onnxpress.ExportConfig(measure='none', cache=False))\n"
        "print('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(given[task]), str(tmp_path / "bundle")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1] == "False"


# --- embeddings ---


@pytest.mark.parametrize("include_prompt", [True, False])
def test_pooling_is_appended(include_prompt: bool, tmp_path: Path) -> None:
    with quiet():
        folder = make_embedder(tmp_path / "model", prompts={"query": "where is"}, include_prompt=include_prompt)
    path = optimum_folder(folder, tmp_path / "given", "feature-extraction", opset=14)
    model, expected = press(path, tmp_path / "bundle"), serve_in_pytorch(folder, "feature-extraction")
    for options in ({}, {"prompt_name": "query"}):
        assert np.abs(model.embed(TEXTS, **options) - expected.embed(TEXTS, **options)).max() < 2e-5
    assert model.settings == expected.settings


def test_an_embedding_that_the_graph_has_is_taken_as_it_is(tiny_model: Path, traced: Traced, tmp_path: Path) -> None:
    folder = describe(tiny_model, tmp_path / "given")
    (folder / "onnx").mkdir()
    for path in traced.path.parent.iterdir():
        shutil.copy(path, folder / "onnx")
    found = reference(folder)
    assert found.plan.then == "nothing"
    assert found.settings == traced.model.settings
    expected = serve_in_pytorch(tiny_model, "feature-extraction").embed(TEXTS)
    assert np.abs(press(folder, tmp_path / "bundle").embed(TEXTS) - expected).max() < 2e-5


@pytest.mark.parametrize("pooled", [True, False])
def test_the_file_is_measured_in_a_process_of_its_own(pooled: bool, given: dict[str, Path], tmp_path: Path) -> None:
    task = "feature-extraction" if pooled else "question-answering"
    found, graph = reference(given[task], task), None
    if pooled:
        graph = tmp_path / "model.onnx"
        with quiet():
            found.write_graph(graph)
    command = baseline_command(found.source, task, FP32, 1, graph)
    asked = json.dumps({"do": "throughput", "texts": TEXTS[:3], "batch": 2, "seconds": 0.0})
    lines = subprocess.run(command, input=f"{asked}\n", capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(lines[0]) == {"ready": True}
    assert json.loads(lines[1])["answer"] > 0


# --- graphs of other forms ---


def as_int32(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32


def segments_as_int32(model: onnx.ModelProto) -> None:
    model.graph.input[2].type.tensor_type.elem_type = TensorProto.INT32


def without_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def with_weights_among_inputs(model: onnx.ModelProto) -> None:
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def with_weights_in_constants(model: onnx.ModelProto) -> None:
    for index, tensor in enumerate(model.graph.initializer):
        model.graph.node.insert(index, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]


def with_functions(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Tanh", ["x"], ["y"])]
    opsets = list(model.opset_import)
    model.functions.append(helper.make_function("local", "squash", ["x"], ["y"], body, opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "Tanh":
            node.op_type, node.domain = "squash", "local"


def with_other_names(model: onnx.ModelProto) -> None:
    """One name for two sizes, an inner value named as our output, and an output named otherwise."""
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = "N"
    for node in model.graph.node:
        node.input[:] = ["logits" if name == "attention" else name for name in node.input]
        node.output[:] = ["output_0" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "output_0"
    inner = model.graph.node[5].output[0]
    for node in model.graph.node:
        node.input[:] = ["logits" if name == inner else name for name in node.input]
        node.output[:] = ["logits" if name == inner else name for name in node.output]


def with_further_outputs(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))


FORMS = [
    as_int32, without_names, with_weights_among_inputs, with_weights_in_constants, with_functions, with_other_names,
    with_further_outputs,
]  # fmt: skip


@pytest.mark.parametrize("change", FORMS, ids=lambda change: change.__name__.strip("_"))
def test_a_graph_of_another_form_is_given_ours(
    change: Callable[[onnx.ModelProto], None], given: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(given["text-classification"], tmp_path / "given")
    edit(folder / "model.onnx", folder / "model.onnx", change)
    found, plain = reference(folder, "text-classification"), reference(given["text-classification"])
    assert (found.inputs, found.outputs) == (plain.inputs, plain.outputs)
    (tmp_path / "ours").mkdir()
    found.write_graph(tmp_path / "ours" / "model.onnx")
    graph = onnx.load(tmp_path / "ours" / "model.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == [
        tensor.name for tensor in (*plain.inputs, *plain.outputs)
    ]
    ids = np.random.default_rng(0).integers(5, 30, (3, 9))
    feeds = {tensor.name: np.ones_like(ids) for tensor in found.inputs} | {"input_ids": ids}
    (values,) = run_plain(tmp_path / "ours" / "model.onnx", feeds)
    assert np.abs(values - plain.compute(feeds)["logits"]).max() < 1e-5


@pytest.mark.parametrize("change", [lambda model: None, segments_as_int32], ids=["int64", "int32"])
def test_segments_of_a_model_that_has_one_are_left_out(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    with quiet():
        folder = make_model(tmp_path / "model", "roberta", "text-classification")
    path = optimum_folder(folder, tmp_path / "given", "text-classification")
    edit(path / "model.onnx", path / "model.onnx", change)
    model = press(path, tmp_path / "bundle")
    assert model.encoder.input_names == {"input_ids", "attention_mask"}
    expected = WORK["text-classification"](serve_in_pytorch(folder, "text-classification"))
    same(WORK["text-classification"](model), expected)


@pytest.mark.parametrize("opset", [11, 14])
def test_an_old_opset_and_fused_operators_are_pressed(opset: int, folders: dict[str, Path], tmp_path: Path) -> None:
    from onnxruntime.transformers import optimizer

    task = "token-classification"
    folder = describe(folders[task], tmp_path / "given")
    model = load(folders[task], task, attn_implementation="eager" if opset == 11 else "sdpa")
    path = export(model, folder / "model.onnx", task, opset=opset)
    with quiet():  # what optimum calls O2
        fused = optimizer.optimize_model(str(path), "bert", num_heads=4, hidden_size=32, opt_level=0)
        fused.save_model_to_file(str(folder / "model_optimized.onnx"))
    expected = WORK[task](serve_in_pytorch(folders[task], task))
    for name in ("model.onnx", "model_optimized.onnx"):
        result = onnxpress.export(folder / name, tmp_path / f"{name}.bundle", ExportConfig(measure="none"))
        assert [variant["failure"] for variant in result.report["variants"]] == [None, None, None]
        same(WORK[task](onnxpress.load(result.folder, variant="fp32")), expected)


def test_masks_are_picked_before_the_vocabulary_where_it_is_found(given: dict[str, Path], tmp_path: Path) -> None:
    def scale(model: onnx.ModelProto) -> None:
        """Hide the product behind an operator that is not looked through."""
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[:] = ["unscaled"]
        model.graph.initializer.append(numpy_helper.from_array(np.array(2.0, np.float32), "two"))
        model.graph.node.append(helper.make_node("Mul", ["unscaled", "two"], ["logits"]))

    hidden = describe(given["fill-mask"], tmp_path / "hidden")
    edit(given["fill-mask"] / "model.onnx", hidden / "model.onnx", scale)
    feeds = {
        "input_ids": np.arange(5, 17).reshape(2, 6), "attention_mask": np.ones((2, 6), np.int64),
        "token_type_ids": np.zeros((2, 6), np.int64), "mask_positions": np.array([[5, 0, 2], [1, 1, 4]]),
    }  # fmt: skip
    for folder, before in ((given["fill-mask"], True), (hidden, False)):
        found = reference(folder, "fill-mask")
        path = tmp_path / f"{before}.onnx"
        found.write_graph(path)
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert (operators.index("GatherND") < len(operators) - 2) == before
        (logits,) = run_plain(path, feeds)
        assert np.abs(logits - found.compute(feeds)["logits"]).max() < 1e-4


def test_rows_without_tokens_give_zeros_where_the_graph_gives_nan(given: dict[str, Path], tmp_path: Path) -> None:
    def divide(model: onnx.ModelProto) -> None:
        """logits + 0 / number of tokens."""
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[:] = ["finite"]
        for name, value in (("axis", [1]), ("zero", 0.0)):
            kind = np.float32 if isinstance(value, float) else np.int64
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        model.graph.node.extend(
            [
                helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT),
                helper.make_node("ReduceSum", ["mask_float", "axis"], ["tokens"]),
                helper.make_node("Div", ["zero", "tokens"], ["nothing"]),
                helper.make_node("Add", ["finite", "nothing"], ["logits"]),
            ]
        )

    folder = describe(given["text-classification"], tmp_path / "given")
    edit(given["text-classification"] / "model.onnx", folder / "model.onnx", divide)
    assert reference(folder).fills_empty
    found = press(folder, tmp_path / "bundle")
    expected = press(given["text-classification"], tmp_path / "plain")
    same(WORK["text-classification"](found), WORK["text-classification"](expected))


# --- where a file lies ---


def test_a_named_file_is_taken_and_a_folder_with_safetensors_is_pytorchs(
    folders: dict[str, Path], given: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["text-classification"], tmp_path / "both")
    (folder / "onnx").mkdir()
    shutil.copy(given["text-classification"] / "model.onnx", folder / "onnx" / "model_fp32.onnx")
    assert resolve_source(str(folder), FP32).onnx is None
    source = resolve_source(str(folder / "onnx" / "model_fp32.onnx"), FP32)
    assert (source.onnx, source.folder, source.name) == (folder / "onnx" / "model_fp32.onnx", folder, "both")
    before = source.files_sha256
    (folder / "model.safetensors").write_bytes(b"")  # not read, so it does not count
    assert resolve_source(str(source.onnx), FP32).files_sha256 == before
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UnsupportedModelError, match=r"has no weights .*; name one of its ONNX files: onnx/model_fp32.onnx"
    ):
        resolve_source(str(folder), FP32)


def test_pooling_is_read_above_the_folder_of_the_file(tiny_model: Path, tmp_path: Path) -> None:
    folder = describe(tiny_model, tmp_path / "given")
    (folder / "onnx").mkdir()
    shutil.copy(folder / "config.json", folder / "onnx" / "config.json")
    (folder / "onnx" / "model.onnx").write_bytes(b"\x08\x08")
    assert resolve_source(str(folder / "onnx" / "model.onnx"), FP32).folder == folder
    assert resolve_source(str(folder), FP32).onnx == folder / "onnx" / "model.onnx"


def test_a_snapshot_of_the_hub_whose_files_are_links_is_read(
    folders: dict[str, Path], beside: Path, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "cache" / "snapshots" / ("0" * 40), tmp_path / "cache" / "blobs"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    for path in beside.iterdir():
        place = snapshot / "onnx" / path.name if path.name.startswith("model.onnx") else snapshot / path.name
        shutil.copy(path, blobs / f"blob-{path.name}")
        place.symlink_to(blobs / f"blob-{path.name}")
    task = "text-classification"
    same(WORK[task](press(snapshot, tmp_path / "bundle")), WORK[task](serve_in_pytorch(folders[task], task)))


def test_a_tokenizer_without_tokenizer_json_is_converted(
    folders: dict[str, Path], given: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(given["text-classification"], tmp_path / "given")
    expected = reference(folder)
    words = sorted(expected.backend.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in words), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "BertTokenizer"})
    with quiet():
        found = reference(folder)
    assert found.settings == expected.settings
    assert [found.backend.encode(text).ids for text in TEXTS] == [expected.backend.encode(text).ids for text in TEXTS]


# --- variants that do not come about ---


def test_a_variant_that_cannot_be_made_is_left_out_with_the_reason(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("no type for value x")

    monkeypatch.setattr("onnxpress.quantize.fp16.convert_fp16", fail)
    config = ExportConfig(measure="none", variants=("fp32", "fp16"), cache=False)
    result = onnxpress.export(given["text-classification"], tmp_path / "bundle", config)
    failures = {variant["name"]: variant["failure"] for variant in result.report["variants"]}
    assert failures == {"fp32": None, "fp16": "cannot be made of this graph: no type for value x"}
    assert [variant.name for variant in result.manifest.variants] == ["fp32"]


@pytest.mark.parametrize("wrong", [True, False])
def test_a_fused_form_that_fails_or_computes_something_else_is_not_used(
    wrong: bool, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(program: Any) -> None:
        if not wrong:
            raise KeyError("shape")
        next(node for node in program.graph if node.op_type == "Tanh").op_type = "Sigmoid"

    forms = (fusion.forms("cpu")[0], fusion.Form("attention fused", make, fusion.forms("cpu")[0].session))
    monkeypatch.setattr(fusion, "forms", lambda target: forms)
    config = dataclasses.replace(FP32, cache=False)
    result = onnxpress.export(given["text-classification"], tmp_path / "bundle", config)
    taken = {entry["name"]: entry["chosen"] for entry in result.report["variants"][0]["candidates"]}
    assert taken == {"as traced": True, "attention fused": False}


def test_the_gate_names_the_file(given: dict[str, Path], tmp_path: Path) -> None:
    config = ExportConfig(measure="none", variants=("int8",), thresholds=Thresholds(int8_rms=0.0))
    with pytest.raises(VerificationError, match="int8 differs from the ONNX file as given on"):
        onnxpress.export(given["text-classification"], tmp_path / "bundle", config)


# --- refusals ---


def half(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, f"{tensor.name}_half"))
            node = helper.make_node("Cast", [tensor.name], [tensor.name.removesuffix("_half")], to=TensorProto.FLOAT)
            model.graph.node.insert(0, node)


def quantized(model: onnx.ModelProto) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        path = Path(model.doc_string)
        quantize_dynamic(path, path.with_suffix(".int8"), weight_type=QuantType.QInt8)
        model.CopyFrom(onnx.load(path.with_suffix(".int8")))


def random(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["sure"]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    model.graph.node.append(helper.make_node("Dropout", ["sure", "", "training"], ["logits"]))


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1


def fixed_sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 128


def with_positions(model: onnx.ModelProto) -> None:
    axes = ["batch", "sequence"]
    model.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, axes))


def without_mask(model: onnx.ModelProto) -> None:
    model.graph.input[1].name = "mask"
    for node in model.graph.node:
        node.input[:] = ["mask" if name == "attention_mask" else name for name in node.input]


def unknown_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Tanhh"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (half, r"weights of .*model.onnx have fewer bits \(\d+ of float16\); give the float32 model"),
        (quantized, r"is already quantized \(.*\d+ MatMulInteger.* nodes\); give the float32 model"),
        (random, "gives other values in logits when it runs again; export the model in evaluation mode"),
        (fixed_batch, "has a fixed size: the batch axis of attention_mask is 1; export the model again with dynamic"),
        (fixed_sequence, "has a fixed size: the sequence axis of input_ids is 128"),
        (with_positions, "needs the input 'position_ids', which onnxpress does not make"),
        (without_mask, r"has no input attention_mask \(it has input_ids, mask, token_type_ids\)"),
        (unknown_operator, "onnxruntime .* cannot load .*Tanhh"),
    ],
)
def test_a_graph_that_cannot_be_used_is_refused(
    change: Callable[[onnx.ModelProto], None], sentence: str, given: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(given["text-classification"], tmp_path / "given")
    path = folder / "model.onnx"

    def named(model: onnx.ModelProto) -> None:
        model.doc_string = str(path)
        change(model)

    edit(path, path, named)
    with pytest.raises(UnsupportedModelError, match=sentence) as caught:
        onnxpress.export(folder, tmp_path / "bundle", FP32)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_sizes_that_are_fixed_inside_the_graph_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    task = "token-classification"
    folder = describe(folders[task], tmp_path / "given")
    path = export(load(folders[task], task), folder / "model.onnx", task, fixed=[("input_ids", 0), ("input_ids", 1)])

    def open_axes(model: onnx.ModelProto) -> None:
        for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim, "bs", strict=True):
            dim.dim_param = name

    edit(path, path, open_axes)
    with pytest.raises(UnsupportedModelError, match=r"fails on \d texts of \d+ tokens: .*are sizes fixed inside it"):
        reference(folder, task)


def truncate(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")


def not_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")


def lose_weights(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def lose_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def lose_labels(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["id2label"] = {"0": "yes", "1": "no"}
    write_json(folder / "config.json", settings)


def point_outside(folder: Path) -> None:
    _point_to("../secret.data", folder)


def point_to_no_name(folder: Path) -> None:
    _point_to("x" * 5000, folder)


def _point_to(name: str, folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, r"model.onnx is truncated or not an ONNX file \(.*\); download or export it again"),
        (empty, "model.onnx is truncated or not an ONNX file"),
        (not_onnx, "model.onnx is truncated or not an ONNX file"),
        (lose_weights, "model.onnx has its weights in 'model.onnx.data', which is missing; put that file beside it"),
        (point_outside, "reads weights from '../secret.data', outside its folder; do not use it"),
        (point_to_no_name, "model.onnx has its weights in 'x{200}', which is missing"),
        (lose_configuration, "there is no config.json beside .*model.onnx or in the folder above"),
        (lose_tokenizer, "has no tokenizer; put the model's tokenizer.json there"),
        (break_tokenizer, "tokenizer.json cannot be read"),
        (lose_labels, "config.json of given names 2 labels, .*model.onnx gives 3 numbers"),
    ],
)
def test_a_damaged_folder_is_refused(
    damage: Callable[[Path], None], sentence: str, beside: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(beside, tmp_path / "given")
    damage(folder)
    with pytest.raises(OnnxpressError, match=sentence) as caught:
        onnxpress.export(folder / "model.onnx", tmp_path / "bundle", FP32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            "question-answering",
            r"has no output start_logits and end_logits .*\(it has logits \[2, 3\]\); is --task right",
        ),
        ("token-classification", r"gives logits of shape \[2, 3\] for 2 texts of \d+ tokens; the task token-class"),
        ("feature-extraction", "has no output sentence_embedding for the task feature-extraction"),
    ],
)
def test_the_wrong_task_is_refused(asked: str, sentence: str, given: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        reference(given["text-classification"], asked)


def test_another_file_is_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is a file; give the model's folder"):
        resolve_source(str(path), FP32)
