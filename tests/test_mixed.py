"""Graphs that mix precisions: nodes of a float32 graph in the forms they have in quantized ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxpress.quantize.graphs import count_ops, load_graph, reads
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, quantize_int8_dynamic
from onnxpress.quantize.int8_static import Int8StaticConfig, quantize_int8_static
from onnxpress.quantize.migration import MigrationConfig
from onnxpress.quantize.mixed import SWITCHES, MixedConfig, mix_precisions, quantized_nodes, write_switchable
from onnxpress.quantize.outliers import OutlierConfig
from onnxpress.quantize.splicing import open_part
from onnxpress.quantize.weight_only import WeightOnlyConfig, quantize_weights
from onnxpress.runtime.errors import UnsupportedModelError
from tests.graphs import Array, Feeds, Traced, add_weight, node, run_plain, write

ATTENTION = OutlierConfig(smooth_quantile=0.5, worth=1.0)  # something to tame, in any activation


@pytest.fixture(scope="module")
def parts(traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny embedder in three kinds of int8."""
    folder = tmp_path_factory.mktemp("parts")
    plain, tamed = Int8DynamicConfig(reduce_range=True), Int8DynamicConfig(reduce_range=True, outliers=ATTENTION)
    quantize_int8_dynamic(traced.path, folder / "plain.onnx", plain)
    quantize_int8_dynamic(traced.path, folder / "tamed.onnx", tamed, traced.real)
    static = Int8StaticConfig(reduce_range=True, migration=MigrationConfig())
    quantize_int8_static(traced.path, folder / "static.onnx", static, traced.real)
    return {"int8": folder / "plain.onnx", "tamed": folder / "tamed.onnx", "static": folder / "static.onnx"}


def optimized(path: Path, folder: Path) -> Counter[str]:
    """Operators of what onnxruntime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return count_ops(onnx.load(folder / "optimized.onnx", load_external_data=False))


def run(path: Path, feeds: Feeds) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def check_tidy(path: Path) -> onnx.ModelProto:
    """A graph whose weights are all read, whose names differ and which has been loaded with its weights."""
    model = load_graph(path)
    read = {name for one in model.graph.node for name in reads(one)}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    names = [one.name for one in model.graph.node]
    assert len(set(names)) == len(names)
    results = [name for one in model.graph.node for name in one.output if name]
    assert len(set(results)) == len(results)
    return model


@pytest.mark.parametrize("kind", ["int8", "tamed", "static"])
def test_with_every_node_quantized_it_is_the_quantized_graph(
    traced: Traced, parts: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    nodes = quantized_nodes(traced.path, parts[kind])
    assert len(nodes) > 10
    report = mix_precisions(
        traced.path, {kind: parts[kind]}, MixedConfig(dict.fromkeys(nodes, kind)), tmp_path / "m.onnx"
    )
    assert f"{len(nodes)} in {kind}" in report.summary
    assert count_ops(check_tidy(tmp_path / "m.onnx")) == count_ops(load_graph(parts[kind]))
    assert optimized(tmp_path / "m.onnx", tmp_path) == optimized(parts[kind], tmp_path)
    for feeds in traced.real:
        for found, expected in zip(run(tmp_path / "m.onnx", feeds), run(parts[kind], feeds), strict=True):
            np.testing.assert_array_equal(found, expected)
    sizes = [path.with_name(f"{path.name}.data").stat().st_size for path in (tmp_path / "m.onnx", parts[kind])]
    assert sizes[0] == sizes[1]


def test_with_no_node_quantized_it_is_the_float32_graph(traced: Traced, parts: dict[str, Path], tmp_path: Path) -> None:
    report = mix_precisions(traced.path, parts, MixedConfig({}), tmp_path / "m.onnx")
    assert report.counts == {}
    check_tidy(tmp_path / "m.onnx")
    for found, expected in zip(
        run_plain(tmp_path / "m.onnx", traced.real[0]), run_plain(traced.path, traced.real[0]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_every_precision_can_be_given_node_by_node(traced: Traced, parts: dict[str, Path], tmp_path: Path) -> None:
    nodes = quantized_nodes(traced.path, parts["int8"])
    kinds = ["int8", "tamed", "static", "fp16", "fp32"]
    assignment = {name: kinds[index % len(kinds)] for index, name in enumerate(nodes)}
    report = mix_precisions(traced.path, parts, MixedConfig(assignment), tmp_path / "m.onnx")
    model = check_tidy(tmp_path / "m.onnx")
    assert {name for name, kind in assignment.items() if kind == "fp32"} <= set(report.float32_nodes)
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == sum(kind == "fp16" for kind in assignment.values())
    (found,), (expected,) = run(tmp_path / "m.onnx", traced.real[1]), run_plain(traced.path, traced.real[1])
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9


def test_an_activation_is_quantized_once_for_all_that_read_it(
    traced: Traced, parts: dict[str, Path], tmp_path: Path
) -> None:
    nodes = quantized_nodes(traced.path, parts["int8"])
    by_name = {one.name: one for one in load_graph(traced.path).graph.node}
    activation = by_name[nodes[0]].input[0]
    together = [name for name in nodes if by_name[name].input[0] == activation]
    assert len(together) == 3  # query, key and value
    for count in (1, 2, 3):
        assignment = dict.fromkeys(together[:count], "int8")
        mix_precisions(traced.path, parts, MixedConfig(assignment), tmp_path / "m.onnx")
        assert count_ops(load_graph(tmp_path / "m.onnx"))["DynamicQuantizeLinear"] == 1


@pytest.mark.parametrize("kind", ["int8", "static"])
def test_a_switchable_graph_computes_what_the_mixtures_do(
    traced: Traced, parts: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    nodes = quantized_nodes(traced.path, parts[kind])
    write_switchable(traced.path, parts[kind], nodes, tmp_path / "switchable.onnx")
    source = np.random.default_rng(0)
    for switches in (np.zeros(len(nodes), bool), np.ones(len(nodes), bool), source.random(len(nodes)) < 0.5):
        assignment = {name: kind for name, on in zip(nodes, switches, strict=True) if on}
        mix_precisions(traced.path, parts, MixedConfig(assignment), tmp_path / "mixture.onnx")
        for feeds in traced.real:
            (expected,) = run_plain(tmp_path / "mixture.onnx", feeds)
            (found,) = run_plain(tmp_path / "switchable.onnx", {**feeds, SWITCHES: switches})
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_embeddings_and_heads_of_decoders_are_mixed_too_and_tied_ones_stored_once(tmp_path: Path) -> None:
    base = write(_tied(), tmp_path / "base.onnx")
    for bits in (4, 8):
        quantize_weights(base, tmp_path / f"int{bits}.onnx", WeightOnlyConfig(bits=bits, block_size=16))
    parts = {"int4": tmp_path / "int4.onnx", "int8": tmp_path / "int8.onnx"}
    nodes = quantized_nodes(base, parts["int4"])
    assert nodes == ["x", "y", "logits"]
    mix_precisions(base, parts, MixedConfig(dict.fromkeys(nodes, "int4")), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == (tmp_path / "int4.onnx.data").stat().st_size
    feeds = {"input_ids": np.arange(12).reshape(2, 6)}
    (same,), (expected,) = run(tmp_path / "m.onnx", feeds), run(parts["int4"], feeds)
    np.testing.assert_array_equal(same, expected)
    mix_precisions(base, parts, MixedConfig({"x": "int8", "y": "int4"}), tmp_path / "m.onnx")
    model = open_part(tmp_path / "m.onnx").model
    bits = {
        one.op_type: attribute.i for one in model.graph.node for attribute in one.attribute if attribute.name == "bits"
    }
    assert bits == {"GatherBlockQuantized": 8, "MatMulNBits": 4}
    assert count_ops(model)["MatMul"] == 1  # the head, through its transposed table
    (found,), (plain,) = run(tmp_path / "m.onnx", feeds), run_plain(base, feeds)
    assert 0 < np.square(found - plain).mean() / np.square(plain).mean() < 0.05


def _tied() -> onnx.ModelProto:
    """Embedding, one product, and a head that is the embedding."""
    source = np.random.default_rng(3)
    graph = onnx.helper.make_graph(
        [
            node("Gather", ["table", "input_ids"], "x"),
            node("MatMul", ["x", "w"], "y"),
            node("Transpose", ["table"], "turned", perm=[1, 0]),
            node("MatMul", ["y", "turned"], "logits"),
        ],
        "tied",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["b", "s"])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["b", "s", 64])],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    add_weight(model, "table", source.normal(size=(64, 32)).astype(np.float32))
    add_weight(model, "w", source.normal(size=(32, 32)).astype(np.float32))
    return model


def test_nodes_and_precisions_that_are_not_there_are_refused(
    traced: Traced, parts: dict[str, Path], tmp_path: Path
) -> None:
    nodes = quantized_nodes(traced.path, parts["int8"])
    for assignment, said in (
        ({"nowhere": "int8"}, "no node with weights called nowhere"),
        ({nodes[0]: "int3"}, "no graph is given for int3"),
    ):
        with pytest.raises(UnsupportedModelError, match=said):
            mix_precisions(traced.path, parts, MixedConfig(assignment), tmp_path / "m.onnx")
    embedding = next(one.name for one in load_graph(traced.path).graph.node if one.op_type == "Gather")
    with pytest.raises(UnsupportedModelError, match="as the float32 graph does"):
        mix_precisions(traced.path, parts, MixedConfig({embedding: "int8"}), tmp_path / "m.onnx")
