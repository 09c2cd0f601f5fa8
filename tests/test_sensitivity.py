"""How much error single nodes add when they are quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax, softmax

from onnxpress.quantize.graphs import load_graph, save_graph
from onnxpress.quantize.int8_dynamic import Int8DynamicConfig, quantize_int8_dynamic
from onnxpress.quantize.sensitivity import Compared, Divergence, Sensitivity, measure_sensitivity
from tests.graphs import Traced, change_weight

OUTPUTS = [Compared("sentence_embedding", "values")]


@pytest.fixture(scope="module")
def damaged(traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tiny embedder in int8 with the weight of one product shuffled, and that product's name."""
    path = tmp_path_factory.mktemp("damaged") / "int8.onnx"
    quantize_int8_dynamic(traced.path, path, Int8DynamicConfig(reduce_range=True))
    model = load_graph(path)
    product = [one for one in model.graph.node if one.op_type == "MatMulInteger"][4]
    change_weight(model, product.input[1], lambda weight: np.random.default_rng(0).permutation(weight))
    save_graph(model, path)
    return path, product.name.removesuffix("_quant")


def measure(traced: Traced, path: Path, seconds: float | None = None) -> Sensitivity:
    return measure_sensitivity(traced.path, path, "int8", traced.real, OUTPUTS, seconds=seconds)


def test_a_damaged_node_stands_out(traced: Traced, damaged: tuple[Path, str]) -> None:
    path, name = damaged
    found = measure(traced, path)
    worst, *others = sorted(found.nodes, key=lambda one: one.divergence, reverse=True)
    assert worst.node == name
    assert worst.local_error > 0.5
    assert worst.divergence > 20 * max(one.divergence for one in others)
    assert all(one.measured and one.divergence > 0 for one in found.nodes)
    # The other nodes add hardly anything, so all together go as far from float32 as this one.
    assert found.divergence == pytest.approx(worst.divergence, rel=0.2)
    assert found.inputs == sum(len(feeds["input_ids"]) for feeds in traced.real)


def test_costs_are_those_of_the_weights(traced: Traced, damaged: tuple[Path, str]) -> None:
    found = measure(traced, damaged[0])
    tokens = sum(feeds["input_ids"].size for feeds in traced.real)
    shapes = {tensor.name: list(tensor.dims) for tensor in traced.graph().graph.initializer}
    by_name = {one.name: one for one in traced.graph().graph.node}
    for one in found.nodes:
        rows, columns = shapes[by_name[one.node].input[1]]
        assert one.multiply_adds == tokens * rows * columns
        assert one.float32_bytes == 4 * rows * columns
        assert rows * columns <= one.size_bytes < one.float32_bytes


def test_without_time_nodes_are_judged_by_their_local_error(traced: Traced, damaged: tuple[Path, str]) -> None:
    path, name = damaged
    found = measure(traced, path, seconds=0.0)
    assert not any(one.measured for one in found.nodes)
    assert max(found.nodes, key=lambda one: one.divergence).node == name
    assert sum(one.divergence for one in found.nodes) == pytest.approx(found.divergence)


# What is compared


def divergence(output: Compared, mask: list[list[int]], a: list[object], b: list[object]) -> float:
    measured = Divergence([output])
    measured.add({"attention_mask": np.array(mask)}, [np.array(a, np.float32)], [np.array(b, np.float32)])
    return measured.value


def test_probabilities_are_compared_by_their_divergence() -> None:
    a, b = [[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], [[1.5, 1.0, -1.0], [0.0, 0.0, 2.0]]
    expected = (softmax(a, axis=1) * (log_softmax(a, axis=1) - log_softmax(b, axis=1))).sum(axis=1).mean()
    assert divergence(Compared("y", "softmax"), [[1], [1]], a, b) == pytest.approx(expected, rel=1e-5)
    p, q = np.array(a), np.array(b)
    each = expit(p) * (log_expit(p) - log_expit(q)) + expit(-p) * (log_expit(-p) - log_expit(-q))
    assert divergence(Compared("y", "sigmoid"), [[1], [1]], a, b) == pytest.approx(each.sum(axis=1).mean(), rel=1e-5)
    squares = np.square(p - q).sum() / np.square(p).sum()
    assert divergence(Compared("y", "values"), [[1], [1]], a, b) == pytest.approx(squares, rel=1e-5)


def test_padding_does_not_count() -> None:
    mask = [[1, 1, 0], [0, 0, 0]]
    a = [[[1.0, 2.0], [0.0, 1.0], [5.0, 5.0]], [[1.0, 1.0]] * 3]
    b = [[[1.0, 2.0], [0.0, 2.0], [9.0, 0.0]], [[7.0, 1.0]] * 3]
    tokens = divergence(Compared("y", "softmax", "rows"), mask, a, b)
    only = divergence(Compared("y", "softmax", "rows"), [[1, 1]], [a[0][:2]], [b[0][:2]])
    assert tokens == pytest.approx(only) == pytest.approx(tokens)
    assert tokens > 0
    # Of an answer's first token the tokens are the choices, and padding is none of them.
    first = divergence(Compared("y", "softmax", "choices"), mask, [[1, 2, 9], [0, 0, 0]], [[1, 2, 0], [5, 0, 0]])
    assert first == pytest.approx(0.0, abs=1e-7)


def test_what_is_not_a_number_is_infinitely_far() -> None:
    assert divergence(Compared("y", "softmax"), [[1]], [[1.0, 2.0]], [[float("nan"), 2.0]]) == float("inf")
