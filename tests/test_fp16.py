"""quantize/fp16.py: half precision that loads, agrees, and keeps by itself what half precision cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.exporter.fusion import Form, forms, write_form
from onnxpress.quantize.fp16 import Fp16Config, convert_fp16
from onnxpress.quantize.graphs import PassReport, load_graph
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import row_cosines
from tests.graphs import Array, Feeds, Traced, add_weight, node, run_plain, write

FLOAT_MIN = float(np.finfo(np.float32).min)


def graph(nodes: Sequence[onnx.NodeProto], output: str = "y", **weights: Any) -> onnx.ModelProto:
    """A graph from `input_ids` and `attention_mask` to `output`; weights become float32 unless they are integers."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in feeds_of()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
    )
    model = helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    for name, value in weights.items():
        array = np.asarray(value)
        add_weight(model, name, array if array.dtype == np.int64 else array.astype(np.float32))
    return model


def feeds_of(batch: int = 2, length: int = 5, seed: int = 0) -> Feeds:
    ids = np.random.default_rng(seed).integers(0, 20, (batch, length))
    mask = np.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def random(*shape: int, scale: float = 1.0) -> Array:
    """The first row is as large as it gets, `scale`, so that what overflows does not depend on chance."""
    values = np.random.default_rng(len(shape)).uniform(-0.5, 0.5, shape)
    values.flat[0] = 1
    return values * scale


def convert(
    model: onnx.ModelProto, folder: Path, feeds: Feeds | None = None, config: Fp16Config | None = None
) -> tuple[onnx.ModelProto, PassReport, Array]:
    """The converted model, the report, and what the file computes, in the session that would serve it."""
    source = write(model, folder / "source.onnx")
    report = convert_fp16(source, folder / "half.onnx", [feeds or feeds_of()], config or Fp16Config())
    session = make_session(folder / "half.onnx", SessionSettings(), settings=ServingSettings(1))
    (found,) = session.run(None, {key: value for key, value in (feeds or feeds_of()).items() if _is_read(model, key)})
    (plain,) = run_plain(folder / "half.onnx", feeds or feeds_of())
    np.testing.assert_allclose(found, plain, rtol=0.02, atol=2e-3)
    return load_graph(folder / "half.onnx"), report, found


def _is_read(model: onnx.ModelProto, name: str) -> bool:
    return any(entry.name == name for entry in model.graph.input)


def kept(report: PassReport) -> list[str]:
    """Names of the nodes that the report says stayed in float32."""
    return [entry.partition(" ")[0] for entry in report.float32_nodes]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each weight."""
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


# A real model


@pytest.mark.parametrize("form", forms("cpu")[::2], ids=lambda form: form.name)
def test_a_traced_model_agrees_with_pytorch(traced: Traced, tmp_path: Path, form: Form) -> None:
    path, _ = write_form(form, traced.path, tmp_path)
    report = convert_fp16(path, tmp_path / "half.onnx", [case.feeds for case in traced.cases])
    session = make_session(tmp_path / "half.onnx", form.session, settings=ServingSettings(1))
    for case in traced.cases:
        rows = ~case.padded_rows
        for (found,) in (session.run(None, case.feeds), run_plain(tmp_path / "half.onnx", case.feeds)):
            assert found.dtype == np.float32
            assert np.isfinite(found).all(), case.name
            expected = case.expected["sentence_embedding"][rows]
            assert np.abs(found[rows] - expected).max() <= 5e-3, case.name
            assert row_cosines(found[rows], expected).min() > 0.9999, case.name
    assert report.float32_nodes == ()
    assert report.summary == "0 nodes and all ReduceSum, ReduceL2 kept in float32"


def test_inputs_and_outputs_keep_their_types_and_shapes(traced: Traced, tmp_path: Path) -> None:
    convert_fp16(traced.path, tmp_path / "half.onnx", traced.real)
    before, after = traced.graph().graph, load_graph(tmp_path / "half.onnx").graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_weights_take_half_the_space(traced: Traced, tmp_path: Path) -> None:
    convert_fp16(traced.path, tmp_path / "half.onnx", traced.real)
    assert {path.name for path in tmp_path.iterdir()} == {"half.onnx", "half.onnx.data"}
    found = types(load_graph(tmp_path / "half.onnx"))
    float32 = [name for name, kind in found.items() if kind == TensorProto.FLOAT]
    assert TensorProto.FLOAT16 in found.values()
    assert all(name in ("scalar_tensor_default", "val_212") for name in float32), float32  # scalars of kept sums
    original = traced.path.with_name("model.onnx.data").stat().st_size
    assert (tmp_path / "half.onnx.data").stat().st_size < 0.6 * original


def test_the_source_is_not_touched(traced: Traced, tmp_path: Path) -> None:
    before = traced.path.read_bytes(), traced.path.with_name("model.onnx.data").read_bytes()
    convert_fp16(traced.path, tmp_path / "half.onnx", traced.real)
    assert (traced.path.read_bytes(), traced.path.with_name("model.onnx.data").read_bytes()) == before


# Values beyond the range


def overflowing(peak: float) -> onnx.ModelProto:
    """Values of up to `peak` between the product and the division."""
    return graph(
        [
            node("Gather", ["table", "input_ids"], "rows"),
            node("MatMul", ["rows", "w"], "product"),
            node("Mul", ["product", "factor"], "big"),
            node("Div", ["big", "peak"], "small"),
            node("MatMul", ["small", "v"], "mixed"),
            node("Tanh", ["mixed"], "y"),
        ],
        table=np.eye(20, 8),
        w=np.diag(np.linspace(0.5, 1, 8)) * 200,
        factor=peak / 200,
        v=random(8, 6),
        peak=min(peak, 30_000.0),
    )


@pytest.mark.parametrize("peak", [70_000.0, 1e6])
def test_nodes_that_see_too_large_values_stay_in_float32_and_are_named(tmp_path: Path, peak: float) -> None:
    model, feeds = overflowing(peak), feeds_of()
    feeds["input_ids"][0, 0] = 7  # the row that reaches the peak
    (expected,) = run_plain(model, feeds)
    _, report, found = convert(model, tmp_path, feeds)
    assert kept(report) == ["big", "small"]  # that writes them, and that reads them
    assert report.float32_nodes[0] == f"big (reaches {peak:.3g})"
    assert report.summary.startswith("2 nodes")
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_without_that_it_would_overflow(tmp_path: Path) -> None:
    """The test above has something to find."""
    model, feeds = overflowing(1e6), feeds_of()
    feeds["input_ids"][0, 0] = 7
    _, report, found = convert(model, tmp_path, feeds, Fp16Config(headroom=1e-4))
    assert kept(report) == []
    assert np.abs(found - run_plain(model, feeds)[0]).max() > 0.1 or not np.isfinite(found).all()


def test_headroom_is_kept_below_the_limit(tmp_path: Path) -> None:
    model, feeds = overflowing(40_000), feeds_of()
    feeds["input_ids"][0, 0] = 7
    assert kept(convert(model, tmp_path, feeds)[1]) == ["big", "small"]
    assert kept(convert(model, tmp_path, feeds, Fp16Config(headroom=1.0))[1]) == []


def test_every_input_is_tried(tmp_path: Path) -> None:
    model, small, large = overflowing(1e6), feeds_of(), feeds_of()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(20, 8, dtype=np.float32) * 1e-3, "table"))
    table = np.eye(20, 8, dtype=np.float32) * 1e-3
    table[7] *= 1e3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(table, "table"))
    small["input_ids"][:], large["input_ids"][:] = 1, 7
    write(model, tmp_path / "source.onnx")
    for inputs, expected in (([small], []), ([small, large], ["big", "small"]), ([large, small], ["big", "small"])):
        assert kept(convert_fp16(tmp_path / "source.onnx", tmp_path / "half.onnx", inputs)) == expected


def test_a_weight_beyond_the_range_stays_in_float32(tmp_path: Path) -> None:
    model = graph(
        [
            node("Gather", ["table", "input_ids"], "rows"),
            node("Mul", ["rows", "huge"], "y_times"),
            node("MatMul", ["y_times", "w"], "y"),
        ],
        table=random(20, 4, scale=1e-5),
        huge=np.full(4, 1e5),
        w=random(4, 3),
    )
    converted, report, found = convert(model, tmp_path)
    assert kept(report) == ["y_times"]
    np.testing.assert_allclose(found, run_plain(model, feeds_of())[0], atol=0.02)
    assert types(converted) == {"table": TensorProto.FLOAT16, "huge": TensorProto.FLOAT, "w": TensorProto.FLOAT16}


def test_a_weight_shared_by_a_kept_and_a_converted_node(tmp_path: Path) -> None:
    model = graph(
        [
            node("Gather", ["table", "input_ids"], "rows"),
            node("MatMul", ["rows", "w"], "small"),
            node("Mul", ["rows", "factor"], "big"),
            node("MatMul", ["big", "w"], "big_too"),
            node("Div", ["big_too", "factor"], "back"),
            node("Sub", ["back", "small"], "difference"),
            node("Add", ["difference", "small"], "y"),
        ],
        table=random(20, 4),
        factor=1e5,
        w=random(4, 4),
    )
    _, report, found = convert(model, tmp_path)
    assert kept(report) == ["big", "big_too", "back"]
    np.testing.assert_allclose(found, run_plain(model, feeds_of())[0], atol=5e-3)


def test_a_traced_model_with_too_large_activations_is_kept_finite(traced: Traced, tmp_path: Path) -> None:
    """The first layer's feed-forward block is made to pass values of 1e6, and to divide them away after its product."""
    model = traced.graph()
    after = next(entry for entry in model.graph.node if entry.op_type == "MatMul" and entry.input[0] == "gelu")
    reader = next(entry for entry in model.graph.node if after.output[0] in entry.input)
    position = list(model.graph.node).index(after)
    model.graph.node.insert(position, node("Mul", ["gelu", add_weight(model, "up", np.float32(1e6))], "gelu_up"))
    down = add_weight(model, "down", np.float32(1e-6))
    model.graph.node.insert(position + 2, node("Mul", [after.output[0], down], "fed"))
    after.input[0] = "gelu_up"
    reader.input[:] = ["fed" if name == after.output[0] else name for name in reader.input]
    write(model, tmp_path / "source.onnx")
    report = convert_fp16(tmp_path / "source.onnx", tmp_path / "half.onnx", [case.feeds for case in traced.cases])
    assert kept(report) == ["gelu_up", after.name, "fed"]
    session = make_session(tmp_path / "half.onnx", SessionSettings(), settings=ServingSettings(1))
    for case in traced.cases:
        (found,) = session.run(None, case.feeds)
        rows = ~case.padded_rows
        assert np.isfinite(found).all()
        assert row_cosines(found[rows], case.expected["sentence_embedding"][rows]).min() > 0.9995, case.name


# Masks


def attention(*mask: onnx.NodeProto, **weights: Any) -> onnx.ModelProto:
    """softmax(scores + bias) where `mask` makes "bias" [b, 1, s] of attention_mask."""
    return graph(
        [
            node("Gather", ["table", "input_ids"], "rows"),
            node("Transpose", ["rows"], "columns", perm=[0, 2, 1]),
            node("MatMul", ["rows", "columns"], "scores"),
            *mask,
            node("Add", ["scores", "bias"], "masked"),
            node("Softmax", ["masked"], "shares", axis=-1),
            node("MatMul", ["shares", "rows"], "y"),
        ],
        table=random(20, 4),
        middle=np.array([1]),
        **weights,
    )


MASKS = {
    "a product with a weight": (
        [
            node("Cast", ["attention_mask"], "ones", to=TensorProto.FLOAT),
            node("Sub", ["one", "ones"], "zeros"),
            node("Mul", ["zeros", "fill"], "flat"),
            node("Unsqueeze", ["flat", "middle"], "bias"),
        ],
        {"one": 1.0, "fill": FLOAT_MIN},
    ),
    "a choice between weights": (
        [
            node("Cast", ["attention_mask"], "is_text", to=TensorProto.BOOL),
            node("Where", ["is_text", "nothing", "fill"], "flat"),
            node("Unsqueeze", ["flat", "middle"], "bias"),
        ],
        {"nothing": 0.0, "fill": FLOAT_MIN},
    ),
    "a choice with minus infinity": (
        [
            node("Cast", ["attention_mask"], "is_text", to=TensorProto.BOOL),
            node("Where", ["is_text", "nothing", "fill"], "flat"),
            node("Unsqueeze", ["flat", "middle"], "bias"),
        ],
        {"nothing": 0.0, "fill": -np.inf},
    ),
    "a constant node": (
        [
            helper.make_node(
                "Constant", [], ["fill"], "fill", value=numpy_helper.from_array(np.array(FLOAT_MIN, np.float32))
            ),
            node("Cast", ["attention_mask"], "is_text", to=TensorProto.BOOL),
            node("Where", ["is_text", "nothing", "fill"], "flat"),
            node("Unsqueeze", ["flat", "middle"], "bias"),
        ],
        {"nothing": 0.0},
    ),
    "a constant of the mask's shape": (
        [
            node("Shape", ["attention_mask"], "sizes"),
            node(
                "ConstantOfShape", ["sizes"], "fills", value=numpy_helper.from_array(np.array([FLOAT_MIN], np.float32))
            ),
            node("Cast", ["attention_mask"], "is_text", to=TensorProto.BOOL),
            node("Where", ["is_text", "nothing", "fills"], "flat"),
            node("Unsqueeze", ["flat", "middle"], "bias"),
        ],
        {"nothing": 0.0},
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_stays_a_mask(tmp_path: Path, name: str) -> None:
    nodes, weights = MASKS[name]
    model = attention(*nodes, **weights)
    feeds = feeds_of()
    (expected,) = run_plain(model, feeds)
    _, report, found = convert(model, tmp_path, feeds)
    assert kept(report) == []
    np.testing.assert_allclose(found, expected, atol=5e-3)
    other = {**feeds, "input_ids": feeds["input_ids"].copy()}
    other["input_ids"][0, 3:] = 19 - other["input_ids"][0, 3:]  # the padded positions
    (again,) = run_plain(tmp_path / "half.onnx", other)
    np.testing.assert_array_equal(again[0, :3], found[0, :3])


@pytest.mark.parametrize("name", [name for name in MASKS if "infinity" not in name])
def test_a_fully_masked_row_is_finite(tmp_path: Path, name: str) -> None:
    nodes, weights = MASKS[name]
    feeds = feeds_of()
    feeds["attention_mask"][1] = 0
    _, _, found = convert(attention(*nodes, **weights), tmp_path, feeds)
    assert np.isfinite(found).all()


# Casts


def test_casts_give_what_their_readers_take(tmp_path: Path) -> None:
    model = graph(
        [
            node("Gather", ["table", "input_ids"], "rows"),
            node("Cast", ["attention_mask"], "weights", to=TensorProto.FLOAT),  # read by a converted node
            node("Unsqueeze", ["weights", "last"], "column"),
            node("Mul", ["rows", "column"], "masked"),
            node("Cast", ["masked"], "whole", to=TensorProto.INT64),  # from half precision to integers
            node("Cast", ["whole"], "steps", to=TensorProto.FLOAT),
            node("Cast", ["attention_mask"], "lengths", to=TensorProto.FLOAT),  # read by a sum, which is kept
            node("ReduceSum", ["lengths", "one"], "length"),
            node("Unsqueeze", ["length", "last"], "divisor"),
            node("Div", ["masked", "divisor"], "mean"),
            node("Add", ["mean", "steps"], "y"),
        ],
        table=random(20, 4, scale=3),
        last=np.array([2]),
        one=np.array([1]),
    )
    model.graph.node[8].input[1] = "last"
    _, _, found = convert(model, tmp_path)
    np.testing.assert_allclose(found, run_plain(model, feeds_of())[0], atol=5e-3)


def test_a_cast_that_is_the_output_keeps_its_type(tmp_path: Path) -> None:
    model = graph([node("Cast", ["input_ids"], "y", to=TensorProto.FLOAT)])
    _, _, found = convert(model, tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, feeds_of()["input_ids"])


def test_a_cast_of_numbers_too_large_for_half_precision_is_kept(tmp_path: Path) -> None:
    model = graph(
        [
            node("Mul", ["input_ids", "million"], "large"),
            node("Cast", ["large"], "as_float", to=TensorProto.FLOAT),
            node("Div", ["as_float", "divisor"], "y"),
        ],
        million=np.array(1_000_000),
        divisor=1e6,
    )
    _, report, found = convert(model, tmp_path)
    assert kept(report) == ["as_float", "y"]
    np.testing.assert_allclose(found, feeds_of()["input_ids"])


def test_sums_stay_in_float32(tmp_path: Path) -> None:
    """3000 tokens of 1 + 0.01: half precision adds to 2048 and no further."""
    model = graph(
        [
            node("Gather", ["table", "input_ids"], "rows"),
            node("ReduceSum", ["rows", "axis"], "total", keepdims=0),
            node("Div", ["total", "count"], "y"),
        ],
        table=np.full((20, 4), 1.01),
        axis=np.array([1]),
        count=3000.0,
    )
    feeds = {"input_ids": np.zeros((2, 3000), np.int64), "attention_mask": np.ones((2, 3000), np.int64)}
    _, _, found = convert(model, tmp_path, feeds)
    np.testing.assert_allclose(found, 1.01, atol=2e-3)


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    model, feeds = overflowing(1e6), feeds_of()
    feeds["input_ids"][0, 0] = 7
    for entry in model.graph.node:
        entry.name = ""
    converted, report, found = convert(model, tmp_path, feeds)
    np.testing.assert_allclose(found, run_plain(model, feeds)[0], atol=0.01)
    assert len(report.float32_nodes) == 2
    assert types(converted)["v"] == TensorProto.FLOAT16
