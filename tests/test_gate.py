"""The gate fails on graphs that are broken on purpose, one at a time, and says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.divergence import first_divergence
from onnxpress.exporter.state import State
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.verification import Case, Parity, check_parity
from tests.graphs import TASK, Array, Feeds, Traced, add_weight, change_weight, insert_before_uses, node, write


def judge(traced: Traced, graph: onnx.ModelProto | None, folder: Path) -> Parity:
    path = traced.path if graph is None else write(graph, folder / "broken.onnx")
    session = make_session(path, SessionSettings(), threads=1)
    return check_parity(lambda feeds: session.run(None, feeds)[0], traced.cases, "max_abs", 1e-4)


def weight_named(graph: onnx.ModelProto, part: str) -> str:
    return next(tensor.name for tensor in graph.graph.initializer if part in tensor.name)


def no_positions(graph: onnx.ModelProto) -> None:
    change_weight(graph, weight_named(graph, "position_embeddings"), np.zeros_like)


def shifted_positions(graph: onnx.ModelProto) -> None:
    change_weight(graph, weight_named(graph, "position_embeddings"), lambda value: np.roll(value, 1, axis=0))


def no_token_types(graph: onnx.ModelProto) -> None:
    change_weight(graph, weight_named(graph, "token_type_embeddings"), lambda value: np.repeat(value[:1], 2, axis=0))


def no_mask(graph: onnx.ModelProto) -> None:
    one = add_weight(graph, "one", np.array(1))
    insert_before_uses(graph, "attention_mask", lambda old, new: [node("Max", [old, one], new)])


def first_token_padded(graph: onnx.ModelProto) -> None:
    """Every row's first position is treated as padding."""
    zero, one, far = (add_weight(graph, f"cut_{value}", np.array([value])) for value in (0, 1, 9999))

    def nodes(old: str, new: str) -> list[onnx.NodeProto]:
        return [
            node("Slice", [old, zero, one, one], "cut_first"),
            node("Slice", [old, one, far, one], "cut_rest"),
            node("Mul", ["cut_first", zero], "cut_nothing"),
            node("Concat", ["cut_nothing", "cut_rest"], new, axis=1),
        ]

    insert_before_uses(graph, "attention_mask", nodes)


def frozen_length(graph: onnx.ModelProto) -> None:
    for entry in graph.graph.input:
        entry.type.tensor_type.shape.dim[1].dim_value = 7


def frozen_batch(graph: onnx.ModelProto) -> None:
    for entry in graph.graph.input:
        entry.type.tensor_type.shape.dim[0].dim_value = 2


def changed_bias(graph: onnx.ModelProto) -> None:
    change_weight(graph, weight_named(graph, "layer.1.intermediate.dense.bias"), lambda value: value + 0.01)


def test_the_traced_graph_passes(traced: Traced, tmp_path: Path) -> None:
    parity = judge(traced, None, tmp_path)
    assert parity.failure() is None
    assert parity.agreement > 0.999999


@pytest.mark.parametrize(
    "damage",
    [
        no_positions,
        shifted_positions,
        no_token_types,
        no_mask,
        first_token_padded,
        frozen_length,
        frozen_batch,
        changed_bias,
    ],
)
def test_a_broken_graph_fails(damage: Callable[[onnx.ModelProto], None], traced: Traced, tmp_path: Path) -> None:
    graph = traced.graph()
    damage(graph)
    assert judge(traced, graph, tmp_path).failure() is not None


def test_only_the_case_with_segments_sees_token_types(traced: Traced, tmp_path: Path) -> None:
    """Without it the test above would pass a graph that ignores them."""
    graph = traced.graph()
    no_token_types(graph)
    assert [case.name for case in judge(traced, graph, tmp_path).cases if not case.passed] == ["batch 2, two segments"]


def test_the_first_divergence_is_where_the_graph_was_changed(traced: Traced, tmp_path: Path) -> None:
    graph = traced.graph()
    change_weight(graph, weight_named(graph, "layer.1.intermediate.dense.bias"), lambda value: value + 1)
    state = SimpleNamespace(traced=traced.path, source=traced.source, task=TASK, config=ExportConfig())
    found = first_divergence(cast(State, state), write(graph, tmp_path / "broken.onnx"), traced.real[0])
    assert found is not None
    assert "layer.1.intermediate" in found["module"]
    assert found["difference"] > 0.01


# What a run may give, on a case of two rows of which the second is padding.


def padded_case() -> Case:
    mask = np.array([[1, 1, 1], [0, 0, 0]])
    expected = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)
    return Case("padded", {"attention_mask": mask}, expected, real=True)


def verdict(run: Callable[[Feeds], Array]) -> Any:
    return check_parity(run, [padded_case()], "max_abs", 1e-4)


def test_padded_rows_are_not_compared() -> None:
    def run(feeds: Feeds) -> Array:
        rows = len(feeds["attention_mask"])
        return np.array([[1.0, 2.0], [7.0, 7.0]], np.float32)[:rows]

    assert verdict(run).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padded_rows_must_be_finite(value: float) -> None:
    def run(feeds: Feeds) -> Array:
        return np.array([[1.0, 2.0], [value, 0.0]], np.float32)[: len(feeds["attention_mask"])]

    assert "rows [1] are not finite" in verdict(run).failure()


def test_padded_rows_must_not_change_the_others() -> None:
    def run(feeds: Feeds) -> Array:
        rows = len(feeds["attention_mask"])
        return np.array([[1.0, 2.0 if rows == 2 else 2.5], [0.0, 0.0]], np.float32)[:rows]

    assert "changes the rows beside it" in verdict(run).failure()


def test_another_shape_fails() -> None:
    assert "shape [2, 3]" in verdict(lambda feeds: np.zeros((2, 3), np.float32)).failure()


def test_a_graph_that_does_not_run_fails() -> None:
    def run(feeds: Feeds) -> Array:
        raise RuntimeError("no kernel")

    assert "onnxruntime failed: no kernel" in verdict(run).failure()
