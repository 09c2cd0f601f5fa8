"""quantize/int8_static.py, ranges.py and migration.py: 8 bits with ranges that were found on texts beforehand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import transformers
from onnx import TensorProto, helper, numpy_helper

from onnxpress.exporter.fusion import forms, write_form
from onnxpress.quantize.activations import products_by_activation
from onnxpress.quantize.graphs import count_ops, load_graph
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, quantize_int8_dynamic
from onnxpress.quantize.int8_static import Int8StaticConfig, candidates, quantize_int8_static
from onnxpress.quantize.migration import MigrationConfig, migrate_scales
from onnxpress.quantize.ranges import METHODS, Method, find_ranges
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.verification import row_cosines
from tests import outlier_models
from tests.graphs import (
    Array,
    Feeds,
    Traced,
    add_weight,
    change_weight,
    initializer,
    node,
    run_plain,
    trace_folder,
    write,
)
from tests.outlier_models import Classifier

SAFE = Int8StaticConfig(reduce_range=True)  # exact on every processor
MIGRATED = dataclasses.replace(SAFE, migration=MigrationConfig())
FEATURES = 256


def feeds_of(batch: int = 3, length: int = 11, seed: int = 0, empty: int = 0) -> Feeds:
    """Random token ids; the last `empty` positions of each row are padding."""
    ids = np.random.default_rng(seed).integers(1, 50, (batch, length))
    mask = np.ones_like(ids)
    mask[:, length - empty :] = 0
    return {"input_ids": np.where(mask == 0, 0, ids), "attention_mask": mask}


def embedding_and_products(*widths: int, operator: str = "MatMul") -> onnx.ModelProto:
    """Gather -> x; a product of x for each width -> y0, y1, ...; x + 1 -> z."""
    rng = np.random.default_rng(7)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph([node("Gather", ["table", "input_ids"], "x")], "products", inputs, [])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    add_weight(model, "table", rng.normal(size=(50, FEATURES)).astype(np.float32))
    add_weight(model, "one", np.ones(1, np.float32))
    source = "x"
    if operator == "Gemm":
        add_weight(model, "rows", np.array([-1, FEATURES], np.int64))
        model.graph.node.append(node("Reshape", ["x", "rows"], "flat"))
        source = "flat"
    for index, width in enumerate(widths):
        add_weight(model, f"w{index}", rng.normal(size=(FEATURES, width)).astype(np.float32))
        if operator == "Gemm":
            change_weight(model, f"w{index}", lambda weight: weight.T)
            add_weight(model, f"b{index}", rng.normal(size=width).astype(np.float32))
            model.graph.node.append(node("Gemm", [source, f"w{index}", f"b{index}"], f"y{index}", transB=1))
        else:
            model.graph.node.append(node("MatMul", [source, f"w{index}"], f"y{index}"))
        axes = ["b", "s", width] if operator == "MatMul" else ["n", width]
        model.graph.output.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, axes))
    model.graph.node.append(node("Add", ["x", "one"], "z"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["b", "s", FEATURES]))
    return model


def quantized(
    model: onnx.ModelProto, folder: Path, config: Int8StaticConfig = SAFE, feeds: list[Feeds] | None = None
) -> Path:
    source = write(model, folder / "source.onnx")
    quantize_int8_static(source, folder / "int8.onnx", config, [feeds_of()] if feeds is None else feeds)
    return folder / "int8.onnx"


def relative_error(found: Array, expected: Array) -> float:
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))


def fused_operators(path: Path, folder: Path) -> Counter[str]:
    """What onnxruntime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return count_ops(onnx.load(folder / "optimized.onnx", load_external_data=False))


# Quantizing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_traced_model_keeps_its_answers(
    traced: Traced, tmp_path: Path, method: Method, symmetric: bool, per_channel: bool
) -> None:
    config = dataclasses.replace(SAFE, method=method, symmetric=symmetric, per_channel=per_channel)
    report = quantize_int8_static(traced.path, tmp_path / "model.onnx", config, traced.real)
    case = traced.cases[1]
    (found,) = run_plain(tmp_path / "model.onnx", case.feeds)
    assert row_cosines(found, case.expected["sentence_embedding"]).min() > (0.98 if per_channel else 0.97)
    assert config.label in report.summary
    assert report.summary.startswith("12 matrix products in int8")
    assert report.counts["QuantizeLinear"] == 8  # queries, keys and values read one


@pytest.mark.parametrize("config", [*candidates(describe_machine()), Int8StaticConfig(signed=False)], ids=str)
def test_other_settings_do_too(traced: Traced, tmp_path: Path, config: Int8StaticConfig) -> None:
    quantize_int8_static(traced.path, tmp_path / "model.onnx", config, traced.real)
    for case in traced.cases:
        (found,) = run_plain(tmp_path / "model.onnx", case.feeds)
        rows = ~case.padded_rows
        assert np.isfinite(found).all()
        assert row_cosines(found[rows], case.expected["sentence_embedding"][rows]).min() > 0.9, case.name


def test_results_keep_their_names_and_the_rest_reads_what_it_read(traced: Traced, tmp_path: Path) -> None:
    before = traced.graph()
    quantize_int8_static(traced.path, tmp_path / "model.onnx", MIGRATED, traced.real)
    after = {name: entry for entry in load_graph(tmp_path / "model.onnx").graph.node for name in entry.output}
    products = {entry.output[0] for nodes in products_by_activation(before).values() for entry in nodes}
    assert len(products) == 12
    for entry in before.graph.node:
        made = after[entry.output[0]]
        if entry.output[0] in products:
            assert made.op_type == "MatMul"
            assert {after[name].op_type for name in made.input} == {"DequantizeLinear"}
        else:
            assert (made.op_type, list(made.input)) == (entry.op_type, list(entry.input))


def test_onnxruntime_makes_integer_products_of_it(traced: Traced, tmp_path: Path) -> None:
    quantize_int8_static(traced.path, tmp_path / "model.onnx", SAFE, traced.real)
    made = fused_operators(tmp_path / "model.onnx", tmp_path)
    assert made["MatMulIntegerToFloat"] == 12
    assert made["DequantizeLinear"] == 0
    assert made["QuantizeLinear"] == 8


def test_gemm_with_a_bias_is_an_integer_product_too(tmp_path: Path) -> None:
    model = embedding_and_products(30, operator="Gemm")
    change_weight(model, "w0", lambda weight: weight * (np.arange(30)[:, None] != 4))  # a row of zeros
    path = quantized(model, tmp_path)
    expected, found = run_plain(model, feeds_of())[0], run_plain(path, feeds_of())[0]
    assert relative_error(found, expected) < 0.02
    assert fused_operators(path, tmp_path)["QGemm"] == 1


def test_what_else_reads_an_activation_reads_it_in_float32(tmp_path: Path) -> None:
    model = embedding_and_products(300)
    np.testing.assert_array_equal(run_plain(quantized(model, tmp_path), feeds_of())[1], run_plain(model, feeds_of())[1])


def test_a_graph_with_fused_attention_is_quantized_too(traced: Traced, tmp_path: Path) -> None:
    path, _ = write_form(forms("cpu")[-1], traced.path, tmp_path)
    quantize_int8_static(path, tmp_path / "int8.onnx", SAFE, traced.real)
    case = traced.cases[1]
    (found,) = run_plain(tmp_path / "int8.onnx", case.feeds)
    assert row_cosines(found, case.expected["sentence_embedding"]).min() > 0.98


def test_the_written_model_stands_alone(traced: Traced, tmp_path: Path) -> None:
    before = traced.path.read_bytes()
    quantize_int8_static(traced.path, tmp_path / "small.onnx", MIGRATED, traced.real)
    assert traced.path.read_bytes() == before
    assert external_data_locations(tmp_path / "small.onnx") == {"small.onnx.data"}
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.onnx.data"}


def test_the_library_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantized(embedding_and_products(40), tmp_path, dataclasses.replace(SAFE, method="entropy"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["y1", "second"])
def test_products_can_be_left_out(tmp_path: Path, name: str) -> None:
    model = embedding_and_products(40, 50)
    model.graph.node[2].name = "second"
    path = quantized(model, tmp_path, dataclasses.replace(MIGRATED, exclude=(name,)))
    expected, found = run_plain(model, feeds_of()), run_plain(path, feeds_of())
    np.testing.assert_array_equal(found[1], expected[1])
    assert 0 < relative_error(found[0], expected[0]) < 0.02


# Ranges


def test_minmax_holds_everything_and_percentile_nearly() -> None:
    model = embedding_and_products(40)
    feeds = [feeds_of(seed=seed) for seed in range(3)]
    values = np.concatenate([run_plain(model, feed, ["z"])[0].ravel() - 1 for feed in feeds])
    low, high = find_ranges(model, ["x"], feeds)["x"]
    np.testing.assert_allclose([low, high], [values.min(), values.max()], atol=1e-6)
    inner = find_ranges(model, ["x"], feeds, "percentile", 90.0)["x"]
    np.testing.assert_allclose(inner, np.quantile(values, [0.05, 0.95]), atol=0.05)
    both = find_ranges(model, ["x"], feeds, "percentile", 90.0, symmetric=True)["x"]
    np.testing.assert_allclose(both, np.quantile(np.abs(values), 0.9) * np.array([-1, 1]), atol=0.05)


def test_entropy_cuts_off_what_is_rare_and_large() -> None:
    model = embedding_and_products(40)

    def spike(table: Array) -> Array:
        table[7, 3] = 60
        return table

    change_weight(model, "table", spike)
    feeds = [feeds_of(8, 64)]
    low, high = find_ranges(model, ["x"], feeds, "entropy")["x"]
    assert 2 < high < 30
    assert -10 < low < -2


@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_in_a_later_text_is_seen_and_takes_no_memory(method: Method) -> None:
    model = embedding_and_products(40)

    def enlarge(table: Array) -> Array:
        table *= 1e-6
        table[49] = 1e6  # onnxruntime's histogram would have 10^12 more bins
        return table

    change_weight(model, "table", enlarge)
    common, rare = feeds_of(), feeds_of()
    common["input_ids"] %= 49
    rare["input_ids"][0, 0] = 49
    low, high = find_ranges(model, ["x"], [common, rare], method)["x"]
    assert low <= 0 < high <= 1e6


def test_padding_does_not_widen_ranges() -> None:
    model = embedding_and_products(40)
    feeds = feeds_of(empty=4)

    def enlarge(table: Array) -> Array:
        table[0] = 1000
        return table

    change_weight(model, "table", enlarge)
    assert find_ranges(model, ["x"], [feeds])["x"][1] < 10
    feeds["input_ids"][0, 0] = 0  # the same token in a text
    assert find_ranges(model, ["x"], [feeds])["x"][1] == 1000


# Scale migration


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_migrated_graph_computes_the_same(alpha: float, operator: str) -> None:
    model = embedding_and_products(40, 300, operator=operator)

    def enlarge(table: Array) -> Array:
        table[:, 3] *= 100
        table[:, 5] = 0
        return table

    change_weight(model, "table", enlarge)
    expected = run_plain(model, feeds_of())
    assert migrate_scales(model, [feeds_of()], MigrationConfig(alpha)) == 1
    onnx.checker.check_model(model)
    for found, value in zip(run_plain(model, feeds_of()), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5 * np.abs(value).max())


def test_the_scale_is_that_of_the_paper() -> None:
    model = embedding_and_products(40, 60)
    peaks = np.abs(run_plain(model, feeds_of(), ["z"])[0] - 1).max(axis=(0, 1))
    weights = np.concatenate([numpy_helper.to_array(initializer(model, name)) for name in ("w0", "w1")], axis=1)
    migrate_scales(model, [feeds_of()], MigrationConfig(0.6))
    factors = numpy_helper.to_array(initializer(model, "x_smooth_factors"))
    np.testing.assert_allclose(1 / factors, peaks**0.6 / np.abs(weights).max(axis=1) ** 0.4, rtol=1e-5)


def test_a_weight_that_several_layers_share_stays_one() -> None:
    model = embedding_and_products(FEATURES)
    model.graph.node.append(node("MatMul", ["y0", "w0"], "again"))
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))
    expected = run_plain(model, feeds_of(), ["again"])[0]
    assert migrate_scales(model, [feeds_of()], MigrationConfig()) == 2
    assert sum(tensor.dims[:] == [FEATURES, FEATURES] for tensor in model.graph.initializer) == 1
    np.testing.assert_allclose(run_plain(model, feeds_of(), ["again"])[0], expected, atol=1e-5 * expected.max())


# What is refused


def test_without_texts_there_is_nothing_to_calibrate_on(tmp_path: Path) -> None:
    model = embedding_and_products(40)
    for feeds in ([], [feeds_of(empty=11)]):
        for config in (SAFE, MIGRATED):
            with pytest.raises(InvalidInputError, match="no token to calibrate on; give at least one text"):
                quantized(model, tmp_path, config, feeds)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("config", [SAFE, MIGRATED])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(tmp_path: Path, config: Int8StaticConfig, value: float) -> None:
    model = embedding_and_products(40)

    def damage(table: Array) -> Array:
        table[:, 9] = value
        return table

    change_weight(model, "table", damage)
    with pytest.raises(UnsupportedModelError, match="activation 'x' is not a finite number"):
        quantized(model, tmp_path, config)


def test_a_graph_without_constant_weights_is_refused(tmp_path: Path) -> None:
    model = embedding_and_products()
    with pytest.raises(UnsupportedModelError, match="no matrix product with a constant weight"):
        quantized(model, tmp_path)
    with pytest.raises(UnsupportedModelError, match="no matrix product with a constant weight"):
        quantized(embedding_and_products(40), tmp_path, dataclasses.replace(MIGRATED, exclude=("y0",)))


def test_an_old_operator_set_is_refused(tmp_path: Path) -> None:
    model = embedding_and_products(40)
    model.opset_import[0].version = 11
    with pytest.raises(UnsupportedModelError, match="its operator set is 11; static int8 needs 13"):
        quantized(model, tmp_path)


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'mean'; give one of: minmax, percentile, entropy"):
        Int8StaticConfig(method="mean")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="percentile is 5; give a number above 50 and up to 100"):
        Int8StaticConfig(percentile=5)
    with pytest.raises(InvalidInputError, match=r"alpha is 1\.5; give a number from 0 to 1"):
        MigrationConfig(1.5)
    with pytest.raises(InvalidInputError, match="signed activations need signed weights"):
        Int8StaticConfig(signed=False, signed_activations=True)
    with pytest.raises(InvalidInputError, match="y7 to leave in float32: the graph has no such node or value"):
        quantized(embedding_and_products(40), tmp_path, dataclasses.replace(SAFE, exclude=("y7",)))


# A model that is hard to quantize


@dataclasses.dataclass(frozen=True)
class Hard:
    """A classifier with enlarged channels: its graph, and labelled texts as batches."""

    graph: Path
    batches: list[tuple[Feeds, Array]]

    def accuracy(self, graph: Path) -> float:
        """In points."""
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        right = [session.run(None, feeds)[0].argmax(axis=1) == labels for feeds, labels in self.batches]
        return 100 * float(np.concatenate(right).mean())


def hard(plain: Classifier, folder: Path, every: int) -> Hard:
    model = outlier_models.make_hard(plain, folder / "model")
    traced = trace_folder(model.folder, folder, "text-classification")
    names = {"0": 0, "negative": 0, "1": 1, "positive": 1}
    lines = [line.split("\t") for line in model.evaluation.read_text().splitlines()]
    rows = sorted(((text, names[label]) for text, label in lines[::every]), key=lambda row: len(row[0]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.folder)
    inputs = {entry.name for entry in traced.graph().graph.input}
    batches = []
    for start in range(0, len(rows), 32):
        texts, labels = zip(*rows[start : start + 32], strict=True)
        encoded = tokenizer(list(texts), padding=True, return_tensors="np")
        batches.append(({name: encoded[name].astype(np.int64) for name in inputs}, np.array(labels)))
    return Hard(traced.path, batches)


def check_that_migration_recovers(made: Hard, folder: Path) -> None:
    texts = [feeds for feeds, _ in made.batches[::4]]
    quantize_int8_dynamic(made.graph, folder / "dynamic.onnx", Int8DynamicConfig(reduce_range=True))
    quantize_int8_static(made.graph, folder / "plain.onnx", SAFE, texts)
    quantize_int8_static(made.graph, folder / "migrated.onnx", MIGRATED, texts)
    before = made.accuracy(made.graph)
    loss = before - made.accuracy(folder / "dynamic.onnx")
    assert loss > 5
    assert before - made.accuracy(folder / "plain.onnx") > 5
    assert before - made.accuracy(folder / "migrated.onnx") <= loss / 2


def test_migration_recovers_what_plain_int8_loses(tmp_path: Path) -> None:
    made = hard(outlier_models.train_tiny(tmp_path / "plain"), tmp_path, every=1)
    check_that_migration_recovers(made, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(outlier_models.minilm() is None, reason="the shared data, with a trained MiniLM, is not there")
def test_migration_recovers_what_plain_int8_loses_of_a_trained_model(tmp_path: Path) -> None:
    plain = outlier_models.minilm()
    assert plain is not None
    check_that_migration_recovers(hard(plain, tmp_path, every=2), tmp_path)
