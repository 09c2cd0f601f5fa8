"""quantize/weight_only.py and what it uses: weights of products, embeddings and experts in blocks of 4 or 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxpress.quantize.gptq import hessians, round_with_compensation
from onnxpress.quantize.graphs import PassReport, check_structure, count_ops, load_graph
from onnxpress.quantize.rounding import round_to_nearest
from onnxpress.quantize.weight_only import WeightOnlyConfig, quantize_weights
from onnxpress.runtime.errors import InvalidInputError
from tests.decoder_graph import TinyDecoder
from tests.graphs import Array, add_weight, node, write

EXACT = WeightOnlyConfig(accuracy_level=1)  # activations stay in float32, so that only weights differ
FORMATS = [
    WeightOnlyConfig(bits=bits, block_size=block_size, symmetric=symmetric, accuracy_level=1)
    for bits in (4, 8)
    for block_size in (16, 32, 64, 128)
    for symmetric in (False, True)
]
VOCABULARY = 60


def weight(rows: int, columns: int, seed: int = 0) -> Array:
    """Heavy-tailed, like trained weights."""
    return (np.random.default_rng(seed).standard_t(4, (rows, columns)) * 0.3).astype(np.float32)


# Graphs


def graph_of(nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], width: int = VOCABULARY) -> onnx.ModelProto:
    """Token and position ids in, `logits` [batch, sequence, width] out."""
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "position_ids")
    ]
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", width])
    graph = helper.make_graph(list(nodes), "tiny", ids, [result])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 23)])
    for name, value in weights.items():
        add_weight(model, name, value)
    return model


def tied(width: int = 64) -> onnx.ModelProto:
    """Embeddings of tokens and positions, two products, and a head whose weight is the token embedding."""
    nodes = [
        node("Gather", ["table", "input_ids"], "tokens"),
        node("Gather", ["places", "position_ids"], "positions"),
        node("Add", ["tokens", "positions"], "x"),
        node("MatMul", ["x", "up"], "wide"),
        node("Tanh", ["wide"], "active"),
        node("MatMul", ["active", "down"], "y"),
        node("Transpose", ["table"], "table_t", perm=[1, 0]),
        node("MatMul", ["y", "table_t"], "logits"),
    ]
    weights = {
        "table": weight(VOCABULARY, width, 1),
        "places": weight(20, width, 2),
        "up": weight(width, 96, 3),
        "down": weight(96, width, 4),
    }
    return graph_of(nodes, weights)


def untied() -> onnx.ModelProto:
    """As `tied`, with a head of its own, a Gemm."""
    model = tied()
    del model.graph.node[-2:]
    model.graph.node.extend(
        [
            node("Reshape", ["y", "flat"], "rows"),
            node("Gemm", ["rows", "head", "bias"], "flat_logits", transB=1),
            node("Reshape", ["flat_logits", "whole"], "logits"),
        ]
    )
    add_weight(model, "flat", np.array([-1, 64]))
    add_weight(model, "whole", np.array([1, -1, VOCABULARY]))
    add_weight(model, "head", weight(VOCABULARY, 64, 5))
    add_weight(model, "bias", weight(1, VOCABULARY, 6)[0])
    return model


def mixture(inner: int = 64) -> onnx.ModelProto:
    """A mixture of four experts, of which a router chooses two."""
    nodes = [
        node("Gather", ["table", "input_ids"], "tokens"),
        node("Reshape", ["tokens", "flat"], "x"),
        node("MatMul", ["x", "router"], "scores"),
        node("Softmax", ["scores"], "shares", axis=-1),
        helper.make_node("TopK", ["shares", "two"], ["best", "chosen"], name="choice"),
        node("Cast", ["chosen"], "unused", to=TensorProto.FLOAT),
        helper.make_node(
            "MoE",
            ["x", "scores", "gate_up", "", "down_proj"],
            ["mixed"],
            name="experts",
            domain="com.microsoft",
            k=2,
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
            normalize_routing_weights=1,
        ),
        node("Reshape", ["mixed", "whole"], "y"),
        node("MatMul", ["y", "head"], "logits"),
    ]
    weights = {
        "table": weight(VOCABULARY, 64, 1),
        "router": weight(64, 4, 2),
        "gate_up": weight(4 * 2 * inner, 64, 3).reshape(4, 2 * inner, 64),
        "down_proj": weight(4 * 64, inner, 4).reshape(4, 64, inner),
        "head": weight(64, VOCABULARY, 5),
        "flat": np.array([-1, 64]),
        "whole": np.array([1, -1, 64]),
        "two": np.array([2]),
    }
    model = graph_of(nodes, weights)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


# Running and reading graphs


def press(
    model: onnx.ModelProto, folder: Path, config: WeightOnlyConfig = EXACT, calibration: Any = None
) -> tuple[Path, PassReport]:
    write(model, folder / "source.onnx")
    report = quantize_weights(folder / "source.onnx", folder / "model.onnx", config, calibration)
    check_structure(folder / "model.onnx")
    return folder / "model.onnx", report


def ids_of(length: int = 12, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {"input_ids": random.integers(0, VOCABULARY, (1, length)), "position_ids": np.arange(length)[None] % 20}


def run(path: Path, feeds: dict[str, Array]) -> Array:
    """The logits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    (logits,) = session.run(["logits"], {name: value for name, value in feeds.items() if name in wanted})
    return np.asarray(logits)


def unpacked(values: Array, bits: int, count: int) -> Array:
    """Codes along the last axis, `count` of them."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)
    return values[..., :count].astype(np.float32)


def weights_in(path: Path) -> dict[str, Array]:
    """The matrices [outputs, inputs] that a written graph stands for, by the name of the node that reads them."""
    model = load_graph(path)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for part in model.graph.node:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in part.attribute}
        if part.op_type == "MatMulNBits":
            codes, scales, *zeros = (tensors[name] for name in part.input[1:])
        elif part.op_type == "GatherBlockQuantized":
            codes, scales, *zeros = (tensors[name] for name in (part.input[0], *part.input[2:]))
        else:
            continue
        bits, block_size, count = settings["bits"], settings["block_size"], scales.shape[1]
        blocks = unpacked(codes.reshape(len(codes), -1), bits, count * block_size).reshape(len(codes), count, -1)
        middle = unpacked(zeros[0], bits, count) if zeros else np.full_like(scales, 2 ** (bits - 1))
        matrix = ((blocks - middle[:, :, None]) * scales[:, :, None]).reshape(len(codes), -1)
        found[part.name] = matrix[:, : settings.get("K", matrix.shape[1])]
    return found


def with_weights(model: onnx.ModelProto, values: dict[str, Array], folder: Path) -> Path:
    """The float32 graph with other initializers."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    folder.mkdir()
    return write(changed, folder / "float32.onnx")


def operators(path: Path) -> dict[str, int]:
    return dict(count_ops(load_graph(path)))


# Rounding


@pytest.mark.parametrize("config", FORMATS, ids=lambda config: config.label)
def test_no_block_loses_more_than_by_rounding_in_its_range(config: WeightOnlyConfig) -> None:
    assert config.block_size is not None
    assert config.symmetric is not None
    matrix = weight(24, 2 * config.block_size)
    rounded = round_to_nearest(matrix, config.bits, config.block_size, config.symmetric)
    error = (matrix - rounded.dequantized()).reshape(24, 2, -1)
    blocks = matrix.reshape(24, 2, -1)
    reach = np.abs(blocks).max(-1) * 2 if config.symmetric else np.ptp(np.append(blocks, blocks * 0, -1), axis=-1)
    step = reach / (2**config.bits - 1)
    # Half a step at most for each weight; the scales that are tried do better on the whole.
    assert (np.sqrt(np.square(error).mean(-1)) <= step / 2).all()
    assert np.sqrt(np.square(error).mean()) <= np.sqrt(np.square(step).mean() / 12) * 1.1


def test_smaller_blocks_more_bits_and_zero_points_are_each_more_accurate() -> None:
    matrix = weight(64, 256)

    def loss(bits: int, block_size: int, symmetric: bool) -> float:
        return float(np.square(matrix - round_to_nearest(matrix, bits, block_size, symmetric).dequantized()).sum())

    assert loss(8, 32, False) < loss(4, 16, False) < loss(4, 32, False) < loss(4, 64, False) < loss(4, 128, False)
    assert loss(4, 32, False) < loss(4, 32, True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-30, 3.0, -1e15])
def test_blocks_of_one_value_stay_what_they_are(bits: int, symmetric: bool, value: float) -> None:
    matrix = np.full((2, 40), value, np.float32)
    matrix[:, 35:] = 0
    rounded = round_to_nearest(matrix, bits, 32, symmetric).dequantized()
    # Numbers too small for an inverse in float32 become 0.
    assert np.allclose(rounded, np.where(np.abs(matrix) < 1e-37, 0, matrix), rtol=1e-5, atol=0)


def test_a_matrix_that_fills_its_last_block_in_part_keeps_its_size() -> None:
    matrix = weight(5, 50)
    rounded = round_to_nearest(matrix, 4, 32, symmetric=False)
    assert rounded.codes.shape == (5, 2, 32)
    assert rounded.packed_codes().shape == (5, 2, 16)
    assert rounded.packed_zeros().shape == (5, 1)
    assert np.abs(rounded.dequantized() - matrix).max() < np.abs(matrix).max() / 4


# Graphs


@pytest.mark.parametrize("config", FORMATS, ids=lambda config: config.label)
def test_a_graph_computes_with_the_weights_it_holds(tmp_path: Path, config: WeightOnlyConfig) -> None:
    model = tied()
    path, report = press(model, tmp_path, config)
    assert report.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 3} | (
        {"Slice": 1} if config.block_size == 128 else {}
    )
    held = weights_in(path)
    table = held["logits"]
    assert np.array_equal(held["tokens"][:, :64], table)
    reference = with_weights(model, {"table": table, "up": held["wide"].T, "down": held["y"].T}, tmp_path / "plain")
    assert np.allclose(run(path, ids_of()), run(reference, ids_of()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_in_8_bits_change_little(tmp_path: Path, bits: int) -> None:
    write(tied(), tmp_path / "source.onnx")
    results = []
    for level in (1, 4):
        config = WeightOnlyConfig(bits=bits, accuracy_level=level)
        quantize_weights(tmp_path / "source.onnx", tmp_path / f"{level}.onnx", config)
        results.append(run(tmp_path / f"{level}.onnx", ids_of()))
    difference = np.sqrt(np.square(results[1] - results[0]).mean() / np.square(results[0]).mean())
    assert 0 < difference < 0.02


def test_products_of_every_form_are_found(tmp_path: Path) -> None:
    path, report = press(untied(), tmp_path)
    assert report.counts == {"Add": 1, "GatherBlockQuantized": 1, "MatMulNBits": 3}
    held = weights_in(path)
    plain = {"table": held["tokens"], "up": held["wide"].T, "down": held["y"].T, "head": held["flat_logits"]}
    reference = with_weights(untied(), plain, tmp_path / "plain")
    assert np.allclose(run(path, ids_of()), run(reference, ids_of()), rtol=1e-4, atol=1e-4)
    assert report.float32_nodes == ()


def test_a_matrix_that_is_used_both_ways_is_rounded_both_ways(tmp_path: Path) -> None:
    model = tied()
    model.graph.node[5].CopyFrom(node("MatMul", ["active", "up_t"], "y"))
    model.graph.node.insert(5, node("Transpose", ["up"], "up_t", perm=[1, 0]))
    held = weights_in(press(model, tmp_path)[0])
    assert np.abs(held["wide"].T - held["y"]).max() > 0
    assert np.abs(held["wide"].T - held["y"]).max() < 0.5


def test_a_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    _, report = press(tied(), tmp_path)
    parameters = {"table": VOCABULARY * 64, "up": 64 * 96, "down": 96 * 64}
    bytes_each = 1 / 2 + 4 / 32 + 1 / 64  # a code, and a scale and a zero point for 32
    expected = sum(parameters.values()) * bytes_each + 20 * 64 * 4
    size = sum((tmp_path / name).stat().st_size for name in ("model.onnx.data", "model.onnx"))
    assert expected < size < expected + 6000  # the nodes, and tensors that begin at whole pages
    assert "stored once" in report.summary
    assert (tmp_path / "model.onnx.data").stat().st_size < expected + 1000


def test_an_embedding_that_is_not_wanted_stays(tmp_path: Path) -> None:
    path, report = press(tied(), tmp_path, dataclasses.replace(EXACT, embeddings=False))
    assert report.counts == {"MatMulNBits": 3}
    assert operators(path)["Gather"] == 2
    reference = with_weights(
        tied(), {"up": weights_in(path)["wide"].T, "down": weights_in(path)["y"].T}, tmp_path / "p"
    )
    plain, found = run(reference, ids_of()), run(path, ids_of())
    assert 0 < np.sqrt(np.square(found - plain).mean() / np.square(plain).mean()) < 0.2  # the head alone


def test_the_head_can_have_more_bits(tmp_path: Path) -> None:
    path, report = press(tied(), tmp_path, dataclasses.replace(EXACT, head_bits=8))
    table = numpy_helper.to_array(next(tensor for tensor in tied().graph.initializer if tensor.name == "table"))
    held = weights_in(path)
    assert np.abs(held["logits"] - table).max() < np.abs(table).max() / 100
    assert np.array_equal(held["logits"], held["tokens"])
    assert np.abs(held["wide"].T - weight(64, 96, 3)).max() > 0.05
    assert "head and embedding in 8 bits" in report.summary


def test_a_head_of_its_own_can_have_more_bits(tmp_path: Path) -> None:
    path, _ = press(untied(), tmp_path, dataclasses.replace(EXACT, head_bits=8))
    model = load_graph(path)
    bits = {
        part.name: attribute.i for part in model.graph.node for attribute in part.attribute if attribute.name == "bits"
    }
    assert bits == {"tokens": 8, "wide": 4, "y": 4, "flat_logits": 8}


def test_positions_are_not_embeddings_of_tokens(tmp_path: Path) -> None:
    path, _ = press(tied(), tmp_path)
    assert operators(path)["Gather"] == 1
    assert "places" in {tensor.name for tensor in load_graph(path).graph.initializer}


def test_excluded_nodes_and_weights_stay(tmp_path: Path) -> None:
    path, report = press(tied(), tmp_path, dataclasses.replace(EXACT, exclude=("wide", "down")))
    assert operators(path)["MatMul"] == 2
    assert report.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 1}
    assert report.float32_nodes == ("wide (excluded)", "y (excluded)")
    kept = {tensor.name for tensor in load_graph(path).graph.initializer}
    assert {"up", "down"} <= kept


def test_an_embedding_that_an_excluded_head_needs_stays(tmp_path: Path) -> None:
    path, report = press(tied(), tmp_path, dataclasses.replace(EXACT, exclude=("logits",)))
    assert report.counts == {"MatMulNBits": 2}
    assert report.float32_nodes == ("logits (excluded)", "tokens (its weight is read elsewhere)")
    assert run(path, ids_of()).shape == (1, 12, VOCABULARY)


def test_a_name_that_the_graph_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"layer\.7 .*no such node or weight"):
        press(tied(), tmp_path, WeightOnlyConfig(exclude=("wide", "layer.7")))


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_are_rounded_and_their_router_is_not(tmp_path: Path, bits: int) -> None:
    model = mixture()
    path, report = press(model, tmp_path, WeightOnlyConfig(bits=bits, accuracy_level=1))
    assert report.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 1, "QMoE": 1}
    assert report.float32_nodes == ("scores (chooses the experts)",)
    block = 64
    plain = {
        name: round_to_nearest(value.reshape(-1, value.shape[2]), bits, block, bits == 8)
        .dequantized()
        .reshape(value.shape)
        for name, value in (
            (tensor.name, numpy_helper.to_array(tensor))
            for tensor in model.graph.initializer
            if tensor.name in ("gate_up", "down_proj")
        )
    }
    held = weights_in(path)
    plain |= {"table": held["tokens"], "head": held["logits"].T}
    expected = run(with_weights(model, plain, tmp_path / "plain"), ids_of())
    difference = np.sqrt(np.square(run(path, ids_of()) - expected).mean() / np.square(expected).mean())
    assert difference < (1e-4 if bits == 4 else 0.03)  # with 8 bits the kernel always quantizes activations


def test_experts_of_a_size_that_blocks_do_not_fit_stay(tmp_path: Path) -> None:
    path, report = press(mixture(inner=24), tmp_path)
    assert operators(path)["MoE"] == 1
    assert report.float32_nodes == ("scores (chooses the experts)", "experts (its sizes are no multiples of 16)")


def test_a_decoder_with_a_cache_keeps_its_answers(tmp_path: Path) -> None:
    decoder = TinyDecoder()
    decoder.save(tmp_path / "source.onnx")
    report = quantize_weights(tmp_path / "source.onnx", tmp_path / "model.onnx", WeightOnlyConfig(bits=8))
    assert report.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 15}
    tokens = [3, 14, 15, 92, 65, 35]
    found, expected = run(tmp_path / "model.onnx", decoder_feeds(decoder, tokens))[0, 0], decoder.logits(tokens)
    assert np.corrcoef(found, expected)[0, 1] > 0.99
    assert found.argmax() == expected.argmax()


def decoder_feeds(decoder: TinyDecoder, tokens: Sequence[int]) -> dict[str, Array]:
    length = len(tokens)
    empty = np.zeros((1, decoder.kv_heads, length, decoder.head_dim), np.float32)
    return {
        "input_ids": np.array([tokens]),
        "position_ids": np.arange(length)[None],
        "logit_index": np.array([[length - 1]]),
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array([length], np.int32),
        **{f"past.{layer}.{kind}": empty for layer in range(decoder.layers) for kind in ("key", "value")},
    }


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    press(tied(), tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("model.onnx", "model.onnx.data", "source.onnx.data")]
    press(tied(), tmp_path)
    assert first == [(tmp_path / name).read_bytes() for name in ("model.onnx", "model.onnx.data", "source.onnx.data")]


# Options


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 2),
        ("block_size", 48),
        ("block_size", 256),
        ("accuracy_level", 2),
        ("head_bits", 16),
        ("symmetric", "no"),
    ],
)
def test_values_that_no_kernel_has_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{field} {value!r}"):
        WeightOnlyConfig(**{field: value})


def test_options_reach_the_nodes(tmp_path: Path) -> None:
    path, _ = press(tied(), tmp_path, WeightOnlyConfig(bits=8, block_size=16, symmetric=False, accuracy_level=0))
    product = next(part for part in load_graph(path).graph.node if part.op_type == "MatMulNBits")
    settings = {attribute.name: attribute.i for attribute in product.attribute}
    assert settings == {"K": 64, "N": 96, "bits": 8, "block_size": 16, "accuracy_level": 0}
    assert len(product.input) == 4


@pytest.mark.parametrize(
    ("inputs", "size"), [(4096, 128), (576, 128), (320, 64), (96, 32), (64, 64), (48, 16), (100, 16), (7, 16)]
)
def test_blocks_are_large_where_little_is_filled_up(inputs: int, size: int) -> None:
    assert WeightOnlyConfig().block_for(inputs) == size
    assert WeightOnlyConfig(block_size=32).block_for(inputs) == 32


# Calibration


def correlated(count: int, width: int, seed: int) -> Array:
    """Inputs [count, width] that lie near a plane of a quarter of the dimensions, some channels larger than others."""
    random = np.random.default_rng(99)
    mixing = random.normal(size=(width // 4, width)) * random.permutation(np.geomspace(0.3, 3, width))
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(count, width // 4)) @ mixing + random.normal(size=(count, width)) * 0.05
    return np.asarray(inputs, np.float32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("width", "block_size"), [(128, 32), (192, 64), (100, 16), (300, 128)])
def test_errors_that_are_made_up_for_leave_smaller_ones_on_other_inputs(
    width: int, block_size: int, symmetric: bool
) -> None:
    matrix = weight(48, width)
    seen, other = correlated(2000, width, 1), correlated(500, width, 2)
    (compensated,) = round_with_compensation([matrix], seen.T @ seen, 4, block_size, symmetric)
    nearest = round_to_nearest(matrix, 4, block_size, symmetric)

    def loss(values: Array) -> float:
        return float(np.square(other @ (values - matrix).T).mean())

    assert loss(compensated.dequantized()) < 0.5 * loss(nearest.dequantized())
    assert compensated.codes.shape == nearest.codes.shape


def test_a_matrix_of_many_outputs_is_rounded_like_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, seen = weight(40, 64), correlated(500, 64, 1)
    (whole,) = round_with_compensation([matrix], seen.T @ seen, 4, 32, symmetric=False)
    monkeypatch.setattr("onnxpress.quantize.gptq._ROWS", 16)
    (in_parts,) = round_with_compensation([matrix], seen.T @ seen, 4, 32, symmetric=False)
    assert np.array_equal(whole.dequantized(), in_parts.dequantized())


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    matrix = weight(8, 64)
    seen = correlated(500, 64, 1)
    seen[:, 10:20] = 0
    for H in (seen.T @ seen, np.zeros((64, 64), np.float32)):
        (rounded,) = round_with_compensation([matrix], H, 4, 32, symmetric=False)
        assert np.isfinite(rounded.dequantized()).all()
        assert np.abs(rounded.dequantized()[:, 10:20] - matrix[:, 10:20]).max() < 0.5


def selecting() -> onnx.ModelProto:
    """Two products that read the same activation, and a head that reads the last token only."""
    nodes = [
        node("Gather", ["table", "input_ids"], "x"),
        node("MatMul", ["x", "first"], "a"),
        node("MatMul", ["x", "second"], "b"),
        node("Mul", ["a", "b"], "y"),
        node("Gather", ["y", "last"], "taken", axis=1),
        node("MatMul", ["taken", "head"], "logits"),
    ]
    # Columns of a table that go together: what GPTQ lives on.
    weights = {
        "table": correlated(VOCABULARY, 64, 3),
        "first": weight(64, 48, 1),
        "second": weight(64, 48, 2),
        "head": weight(48, VOCABULARY, 3),
        "last": np.array([-1]),
    }
    return graph_of(nodes, weights)


def test_calibrated_products_are_more_accurate_on_other_texts(tmp_path: Path) -> None:
    model = selecting()
    config = dataclasses.replace(EXACT, embeddings=False)
    source = write(model, tmp_path / "float32.onnx")
    texts = [ids_of(64, seed) for seed in range(8)]
    losses = []
    for calibration in (None, texts):
        path, report = press(model, tmp_path, config, calibration)
        assert ("GPTQ" in report.summary) == (calibration is not None)
        others = [ids_of(8, seed) for seed in range(100, 140)]
        losses.append(np.mean([np.square(run(path, ids) - run(source, ids)).mean() for ids in others]))
    assert losses[1] < 0.7 * losses[0]


def test_every_token_of_every_text_counts(tmp_path: Path) -> None:
    model = selecting()
    source = write(model, tmp_path / "model.onnx")
    table = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "table")
    texts = [ids_of(64, seed) for seed in range(3)]
    seen = table[np.concatenate([text["input_ids"][0] for text in texts])]
    ((name, H),) = hessians(source, {"x": 64}, texts)
    assert name == "x"
    assert np.allclose(H, seen.T @ seen / len(seen), rtol=1e-4, atol=1e-4)


def test_the_head_is_calibrated_on_all_tokens(tmp_path: Path) -> None:
    # One token of each text reaches the head: too few, were they all that counts.
    texts = [ids_of(64, seed) for seed in range(8)]
    without, _ = press(selecting(), tmp_path)
    before = weights_in(without)
    after = weights_in(press(selecting(), tmp_path, calibration=texts)[0])
    assert all(not np.array_equal(after[name], before[name]) for name in ("a", "b", "logits"))
    assert np.array_equal(after["x"], before["x"])  # nothing is multiplied by the embedding


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="calibration on 40 tokens, but a product has 64 inputs"):
        press(selecting(), tmp_path, calibration=[ids_of(40)])


def test_matrices_too_large_to_look_at_together_are_calibrated_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [ids_of(64, seed) for seed in range(4)]
    together = weights_in(press(selecting(), tmp_path, calibration=texts)[0])
    monkeypatch.setattr("onnxpress.quantize.gptq._MEMORY", 1)
    in_turn = weights_in(press(selecting(), tmp_path, calibration=texts)[0])
    assert all(np.array_equal(together[name], in_turn[name]) for name in together)


def test_calibration_without_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="without a text"):
        press(tied(), tmp_path, calibration=[])
