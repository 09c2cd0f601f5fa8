"""quantize/embedding_tables.py: lookups in tables of 8 bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxpress.quantize.embedding_tables import EmbeddingConfig, quantize_embedding_tables
from onnxpress.quantize.graphs import count_ops, load_graph
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, quantize_int8_dynamic
from onnxpress.quantize.int8_static import Int8StaticConfig, quantize_int8_static
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import row_cosines
from tests.graphs import Array, Feeds, Traced, add_weight, change_weight, node, run_plain, write

ANY = EmbeddingConfig(smallest_bytes=0)
FEEDS: Feeds = {"input_ids": np.array([[4, 0, 199], [7, 7, 1]])}


def lookup(width: int = 64, rows: int = 200, **attributes: int) -> onnx.ModelProto:
    """Gather -> x, one output."""
    graph = helper.make_graph(
        [node("Gather", ["table", "input_ids"], "x", **attributes)],
        "lookup",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    add_weight(model, "table", np.random.default_rng(3).normal(size=(rows, width)).astype(np.float32))
    return model


def quantized(model: onnx.ModelProto, folder: Path, config: EmbeddingConfig = ANY) -> Path:
    quantize_embedding_tables(write(model, folder / "source.onnx"), folder / "small.onnx", config)
    return folder / "small.onnx"


def found(path: Path) -> Array:
    """What the session that would serve it gives."""
    session = make_session(path, SessionSettings(), settings=ServingSettings(1))
    value: Array = session.run(["x"], FEEDS)[0]
    return value


@pytest.mark.parametrize("width", [16, 64, 100, 384])
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.01), (4, 0.15)])
def test_a_lookup_gives_nearly_the_same_under_the_same_name(
    tmp_path: Path, width: int, bits: int, bound: float
) -> None:
    model = lookup(width)
    path = quantized(model, tmp_path, dataclasses.replace(ANY, bits=bits))
    assert count_ops(load_graph(path))["GatherBlockQuantized"] == 1
    (expected,) = run_plain(model, FEEDS)
    assert found(path).shape == expected.shape
    assert np.abs(found(path) - expected).max() <= bound * np.abs(expected).max()


def test_a_row_of_large_values_costs_the_others_nothing(tmp_path: Path) -> None:
    model = lookup()

    def enlarge(table: Array) -> Array:
        table[4] *= 1000
        return table

    change_weight(model, "table", enlarge)
    (expected,) = run_plain(model, FEEDS)
    error = np.abs(found(quantized(model, tmp_path)) - expected).max(axis=-1)
    assert error[0, 0] > 1
    assert error[1].max() < 0.02


def test_a_row_of_zeros_stays_one(tmp_path: Path) -> None:
    model = lookup()

    def clear(table: Array) -> Array:
        table[0] = 0
        return table

    change_weight(model, "table", clear)
    assert not found(quantized(model, tmp_path))[0, 1].any()


@pytest.mark.parametrize("static", [False, True])
def test_a_quantized_model_gets_smaller_and_keeps_its_answers(traced: Traced, tmp_path: Path, static: bool) -> None:
    if static:
        quantize_int8_static(traced.path, tmp_path / "int8.onnx", Int8StaticConfig(reduce_range=True), traced.real)
    else:
        quantize_int8_dynamic(traced.path, tmp_path / "int8.onnx", Int8DynamicConfig(reduce_range=True))
    config = EmbeddingConfig(smallest_bytes=4096)
    report = quantize_embedding_tables(tmp_path / "int8.onnx", tmp_path / "small.onnx", config)
    assert report.counts["GatherBlockQuantized"] == 2
    assert report.summary.startswith("2 tables in 8 bits (")
    assert [entry.partition(" (")[2] for entry in report.float32_nodes] == ["small)"]  # the table of segments
    size = [(tmp_path / f"{name}.onnx.data").stat().st_size for name in ("int8", "small")]
    assert size[1] < 0.75 * size[0]
    assert external_data_locations(tmp_path / "small.onnx") == {"small.onnx.data"}
    for case in traced.cases:
        (value,) = run_plain(tmp_path / "small.onnx", case.feeds)
        rows = ~case.padded_rows
        assert row_cosines(value[rows], case.expected["sentence_embedding"][rows]).min() > 0.97, case.name


def test_a_table_that_a_product_reads_too_stays(tmp_path: Path) -> None:
    model = lookup()
    model.graph.node.append(node("Transpose", ["table"], "transposed"))
    model.graph.node.append(node("MatMul", ["x", "transposed"], "y"))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    with pytest.raises(UnsupportedModelError, match=r"no embedding table .*; table: read by other nodes too"):
        quantized(model, tmp_path)


def test_what_is_no_table_stays(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no embedding table that is worth quantizing$"):
        quantized(lookup(axis=1), tmp_path)
    with pytest.raises(UnsupportedModelError, match="table: small"):
        quantized(lookup(), tmp_path, EmbeddingConfig())


@pytest.mark.parametrize("name", ["table", "x"])
def test_tables_can_be_left_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="table: excluded"):
        quantized(lookup(), tmp_path, dataclasses.replace(ANY, exclude=(name,)))


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="bits are 5; give 4 or 8"):
        EmbeddingConfig(bits=5)
    with pytest.raises(InvalidInputError, match="block size of embeddings is 48; give 16, 32, 64 or 128"):
        EmbeddingConfig(block_size=48)
