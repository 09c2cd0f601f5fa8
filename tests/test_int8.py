"""quantize/int8_dynamic.py and quantize/outliers.py: weights in 8 bits, with what a few large channels would ruin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxpress.exporter.fusion import forms, write_form
from onnxpress.quantize.graphs import count_ops, load_graph
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, candidates, quantize_int8_dynamic
from onnxpress.quantize.outliers import OutlierConfig, tame_outliers
from onnxpress.runtime.hardware import FULL
from onnxpress.runtime.hardware import SAFE as SAFE_KINDS
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.verification import row_cosines
from tests.graphs import Array, Feeds, Traced, add_weight, change_weight, copy_of, initializer, node, run_plain, write

SAFE = Int8DynamicConfig(reduce_range=True)  # exact on every processor
TAMED = dataclasses.replace(SAFE, outliers=OutlierConfig())
OUTLIERS = (3, 17)


def feeds_of(batch: int, length: int, seed: int = 0, empty: int = 0) -> Feeds:
    """Random token ids; the last `empty` positions of each row are padding."""
    ids = np.random.default_rng(seed).integers(0, 50, (batch, length))
    mask = np.ones_like(ids)
    mask[:, length - empty :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def embedding_and_products(widths: Sequence[int], factor: float = 50.0, features: int = 256) -> onnx.ModelProto:
    """Gather -> one product for each width. Channels OUTLIERS of the activation are `factor` times as large as the
    others, and the weights that read them that much smaller, so that all of them count alike."""
    rng = np.random.default_rng(7)
    scale = np.ones(features, np.float32)
    scale[list(OUTLIERS)] = factor
    graph = helper.make_graph(
        [node("Gather", ["table", "input_ids"], "x")],
        "products",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        [],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    add_weight(model, "table", rng.normal(size=(50, features)).astype(np.float32) * scale)
    for index, width in enumerate(widths):
        weight = rng.normal(size=(features, width)).astype(np.float32) / scale[:, None]
        add_weight(model, f"w{index}", weight)
        model.graph.node.append(node("MatMul", ["x", f"w{index}"], f"y{index}"))
        model.graph.output.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["b", "s", width]))
    return model


def error(model: onnx.ModelProto, config: Int8DynamicConfig, feeds: Feeds, folder: Path) -> float:
    """Root mean square of what int8 changes, over that of the outputs."""
    write(model, folder / "source.onnx")
    quantize_int8_dynamic(folder / "source.onnx", folder / "int8.onnx", config, [feeds])
    expected = np.concatenate([value.ravel() for value in run_plain(model, feeds)])
    found = np.concatenate([value.ravel() for value in run_plain(folder / "int8.onnx", feeds)])
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


# Quantizing


@pytest.mark.parametrize("config", candidates((FULL, *SAFE_KINDS)), ids=lambda config: config.label)
def test_a_traced_model_keeps_its_answers(traced: Traced, tmp_path: Path, config: Int8DynamicConfig) -> None:
    report = quantize_int8_dynamic(traced.path, tmp_path / "model.onnx", config, traced.real)
    # Signed 8-bit weights saturate on processors without 8-bit dot products, where nobody would use them.
    bound = 0.98 if config.reduce_range or not config.signed else 0.8
    for case in traced.cases:
        (found,) = run_plain(tmp_path / "model.onnx", case.feeds)
        rows = ~case.padded_rows
        assert np.isfinite(found).all()
        assert row_cosines(found[rows], case.expected["sentence_embedding"][rows]).min() > bound, case.name
    assert config.label in report.summary


def test_weights_are_quantized_and_attention_scores_are_not(traced: Traced, tmp_path: Path) -> None:
    report = quantize_int8_dynamic(traced.path, tmp_path / "model.onnx", SAFE)
    before, after = count_ops(traced.graph()), count_ops(load_graph(tmp_path / "model.onnx"))
    assert before["MatMul"] == 2 * (6 + 2)
    assert after["MatMulInteger"] == 2 * 6
    assert after["MatMul"] == 2 * 2  # scores, and their product with the values
    weights = {tensor.name for tensor in traced.graph().graph.initializer}
    products = [node for node in load_graph(tmp_path / "model.onnx").graph.node if node.op_type == "MatMul"]
    assert not any(name in weights for product in products for name in product.input)
    assert report.summary.startswith("12 matrix products in int8")
    assert report.counts["MatMulInteger"] == 12
    assert (report.nodes_before, report.nodes_after) == (before.total(), after.total())


def test_the_weights_have_the_type_and_range_asked_for(traced: Traced, tmp_path: Path) -> None:
    for config, kind, largest in (
        (Int8DynamicConfig(), np.int8, 127),
        (SAFE, np.int8, 64),
        (Int8DynamicConfig(signed=False), np.uint8, 255),
    ):
        quantize_int8_dynamic(traced.path, tmp_path / "model.onnx", config)
        model = load_graph(tmp_path / "model.onnx")
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        weights = [tensors[node.input[1]] for node in model.graph.node if node.op_type == "MatMulInteger"]
        assert {weight.dtype for weight in weights} == {np.dtype(kind)}
        assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) in range(largest * 9 // 10, largest + 1)


def test_one_scale_for_each_channel_or_one_for_all(tmp_path: Path) -> None:
    model = embedding_and_products([40], factor=1)
    write(model, tmp_path / "source.onnx")
    for per_channel, size in ((True, 40), (False, 1)):
        config = dataclasses.replace(SAFE, per_channel=per_channel)
        quantize_int8_dynamic(tmp_path / "source.onnx", tmp_path / "int8.onnx", config)
        scales = [t for t in load_graph(tmp_path / "int8.onnx").graph.initializer if t.name.startswith("w0_scale")]
        assert [int(np.prod(tensor.dims)) for tensor in scales] == [size]


def test_the_written_model_stands_alone(traced: Traced, tmp_path: Path) -> None:
    before = traced.path.read_bytes()
    quantize_int8_dynamic(traced.path, tmp_path / "small.onnx", TAMED, traced.real)
    assert traced.path.read_bytes() == before
    assert external_data_locations(tmp_path / "small.onnx") == {"small.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.onnx.data"}
    assert [entry.name for entry in load_graph(tmp_path / "small.onnx").graph.input] == list(traced.model.input_axes)


def test_a_graph_with_fused_attention_is_quantized_too(traced: Traced, tmp_path: Path) -> None:
    form = forms("cpu")[-1]
    path, _ = write_form(form, traced.path, tmp_path)
    quantize_int8_dynamic(path, tmp_path / "int8.onnx", TAMED, traced.real)
    case = traced.cases[1]
    (found,) = run_plain(tmp_path / "int8.onnx", case.feeds)
    assert row_cosines(found, case.expected["sentence_embedding"]).min() > 0.98
    assert count_ops(load_graph(tmp_path / "int8.onnx"))["MatMulInteger"] >= 8


def test_gemm_is_quantized(tmp_path: Path) -> None:
    model = embedding_and_products([40], factor=1)
    add_weight(model, "rows", np.array([-1, 256], np.int64))
    add_weight(model, "dense", np.random.default_rng(0).normal(size=(30, 256)).astype(np.float32))
    model.graph.node.append(node("Reshape", ["x", "rows"], "flat"))
    model.graph.node.append(node("Gemm", ["flat", "dense"], "z", transB=1))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 30]))
    assert error(model, SAFE, feeds_of(2, 9), tmp_path) < 0.03
    assert count_ops(load_graph(tmp_path / "int8.onnx"))["MatMulInteger"] == 2
    assert count_ops(load_graph(tmp_path / "int8.onnx"))["Gemm"] == 0


def test_candidates_suit_the_processor() -> None:
    with_dot, without = candidates([FULL]), candidates(SAFE_KINDS)
    assert [(config.signed, config.reduce_range, config.outliers is not None) for config in with_dot] == [
        (True, False, False),
        (True, False, True),
    ]
    assert [(config.signed, config.reduce_range, config.outliers is not None) for config in without] == [
        (True, True, False),
        (True, True, True),
        (False, False, False),
        (False, False, True),
    ]
    assert all(config.per_channel for config in (*with_dot, *without))
    labels = [config.label for config in without]
    assert labels[1] == "signed 7-bit weights, per channel, outlier channels tamed"
    assert len(set(labels)) == len(labels)


# Outlier channels


@pytest.mark.parametrize(
    ("widths", "smoothed", "split"),
    [([300], 1, 0), ([256], 1, 0), ([64], 0, 1), ([64, 96], 0, 1), ([64, 256], 1, 0), ([90, 90, 90], 1, 0)],
)
def test_a_rewritten_graph_computes_the_same(widths: list[int], smoothed: int, split: int) -> None:
    model, feeds = embedding_and_products(widths), feeds_of(3, 11)
    expected = run_plain(model, feeds)
    tamed = tame_outliers(model, [feeds], OutlierConfig(split_share=0.008))
    assert (tamed.smoothed, tamed.split) == (smoothed, split)
    onnx.checker.check_model(model)
    for found, value in zip(run_plain(model, feeds), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5 * np.abs(value).max())
    assert len(tamed.float32_products) == (len(widths) if split else 0)
    named = {entry.name: entry.op_type for entry in model.graph.node}
    assert {named[name] for name in tamed.float32_products} <= {"MatMul"}


@pytest.mark.parametrize("widths", [[256], [200, 200], [64], [64, 96]])
def test_int8_is_much_closer_with_outliers_tamed(widths: list[int], tmp_path: Path) -> None:
    model, feeds = embedding_and_products(widths), feeds_of(4, 32)
    tamed = dataclasses.replace(SAFE, outliers=OutlierConfig(split_share=0.008))
    before, after = error(model, SAFE, feeds, tmp_path), error(model, tamed, feeds, tmp_path)
    assert after < before / 5
    assert after < 0.02


def test_the_channels_split_off_are_the_largest_and_stay_in_float32(tmp_path: Path) -> None:
    write(embedding_and_products([64]), tmp_path / "source.onnx")
    config = dataclasses.replace(SAFE, outliers=OutlierConfig(split_share=0.008))
    report = quantize_int8_dynamic(tmp_path / "source.onnx", tmp_path / "int8.onnx", config, [feeds_of(2, 9)])
    model = load_graph(tmp_path / "int8.onnx")
    assert onnx.numpy_helper.to_array(initializer(model, "x_outliers_channels")).tolist() == list(OUTLIERS)
    assert count_ops(model)["MatMul"] == 1
    assert count_ops(model)["MatMulInteger"] == 1
    assert "(0 activations smoothed, 1 split)" in report.summary


@pytest.mark.parametrize("widths", [[256], [64]])
def test_a_graph_without_outliers_is_left_alone(widths: list[int]) -> None:
    model = embedding_and_products(widths, factor=1)
    before = model.SerializeToString()
    tamed = tame_outliers(model, [feeds_of(4, 32)])
    assert tamed == type(tamed)(0, 0, ())
    assert model.SerializeToString() == before


def test_what_only_padding_holds_is_no_outlier() -> None:
    model, feeds = embedding_and_products([256], factor=1), feeds_of(3, 11, empty=4)
    feeds["input_ids"][feeds["attention_mask"] == 0] = 0

    def enlarge(table: Array) -> Array:
        table[0, OUTLIERS[0]] = 1000
        feeds["input_ids"][feeds["attention_mask"] == 1] += feeds["input_ids"][feeds["attention_mask"] == 1] == 0
        return table

    change_weight(model, "table", enlarge)
    assert tame_outliers(model, [feeds]).smoothed == 0
    feeds["input_ids"][0, 0] = 0  # the same token in a text
    assert tame_outliers(model, [feeds]).smoothed == 1


def test_an_activation_of_zeros_is_left_alone() -> None:
    model = embedding_and_products([256])
    change_weight(model, "table", np.zeros_like)
    assert tame_outliers(model, [feeds_of(2, 5)]).smoothed == 0


def test_all_inputs_are_looked_at() -> None:
    model = embedding_and_products([256], factor=1)

    def enlarge(table: Array) -> Array:
        table[49, OUTLIERS[0]] = 1000
        return table

    change_weight(model, "table", enlarge)
    common, rare = feeds_of(2, 9), feeds_of(2, 9)
    common["input_ids"] %= 49
    rare["input_ids"][:] = 49
    assert tame_outliers(copy_of(model), [common]).smoothed == 0
    assert tame_outliers(copy_of(model), [common, rare]).smoothed == 1


def scale_values(traced: Traced, factor: float) -> onnx.ModelProto:
    """The traced model with two channels of each layer's values enlarged and the weights after them made smaller."""
    model = traced.graph()
    last: dict[str, onnx.NodeProto] = {}
    for entry in model.graph.node:
        module = next((prop.value for prop in entry.metadata_props), "")
        if entry.op_type in ("MatMul", "Add"):
            last[f"{module} {entry.op_type}"] = entry
    names = {tensor.name for tensor in model.graph.initializer}

    def scaled(entry: onnx.NodeProto, how: float, axis: int) -> None:
        position = next(index for index, name in enumerate(entry.input) if name in names)
        old = onnx.numpy_helper.to_array(initializer(model, entry.input[position])).copy()
        index = (..., list(OUTLIERS)) if axis else (list(OUTLIERS), ...)
        old[index] *= how
        entry.input[position] = add_weight(model, f"{entry.name}_scaled", old)  # weights may be shared

    for layer in range(2):
        attention = f"transformer.encoder.layer.{layer}.attention"
        scaled(last[f"{attention}.self.value MatMul"], factor, axis=1)
        scaled(last[f"{attention}.self.value Add"], factor, axis=1)
        scaled(last[f"{attention}.output.dense MatMul"], 1 / factor, axis=0)
    return model


def test_a_traced_model_with_outliers_is_rescued(traced: Traced, tmp_path: Path) -> None:
    model = scale_values(traced, 50)
    case = traced.cases[1]
    np.testing.assert_allclose(run_plain(model, case.feeds)[0], case.expected["sentence_embedding"], atol=1e-5)
    config = dataclasses.replace(SAFE, outliers=OutlierConfig(smooth_quantile=0.9))
    before, after = error(model, SAFE, case.feeds, tmp_path), error(model, config, case.feeds, tmp_path)
    assert after < before / 2
    rewritten = copy_of(model)
    assert tame_outliers(rewritten, traced.real, OutlierConfig(smooth_quantile=0.9)).smoothed >= 2
    for each in traced.cases:
        rows = ~each.padded_rows
        expected = each.expected["sentence_embedding"][rows]
        np.testing.assert_allclose(run_plain(rewritten, each.feeds)[0][rows], expected, atol=1e-5)
