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
from onnxpress.runtime.manifest import SessionSettings, Tensor
from onnxpress.runtime.session import make_session, runner
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import Case, Parity, check_parity
from tests.graphs import (
    TASK,
    Array,
    Feeds,
    Traced,
    add_weight,
    change_weight,
    insert_before_uses,
    node,
    trace_folder,
    write,
)
from tests.in_pytorch import save_bert

Damage = Callable[[onnx.ModelProto], None]


def judge(traced: Traced, graph: onnx.ModelProto | None, folder: Path) -> Parity:
    path = traced.path if graph is None else write(graph, folder / "broken.onnx")
    outputs = traced.model.outputs
    run = runner(
        make_session(path, SessionSettings(), settings=ServingSettings(1)), [tensor.name for tensor in outputs]
    )
    return check_parity(run, traced.cases, outputs, "max_abs", 1e-4)


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


def other_gaps(graph: onnx.ModelProto) -> None:
    """The position before each gap is filled."""
    one, zero = add_weight(graph, "gap_one", np.array(1)), add_weight(graph, "gap_zero", np.array(0))

    def nodes(old: str, new: str) -> list[onnx.NodeProto]:
        return [node("Sub", [old, one], "gap_before"), node("Max", ["gap_before", zero], new)]

    insert_before_uses(graph, "mask_positions", nodes)


def doubled(graph: onnx.ModelProto) -> None:
    """Outputs are doubled."""
    two = add_weight(graph, "two", np.array(2, np.float32))
    for output in graph.graph.output:
        for entry in graph.graph.node:
            entry.output[:] = [f"{name}_half" if name == output.name else name for name in entry.output]
        graph.graph.node.append(node("Mul", [f"{output.name}_half", two], output.name))


def test_the_traced_graph_passes(traced: Traced, tmp_path: Path) -> None:
    parity = judge(traced, None, tmp_path)
    assert parity.failure() is None
    assert parity.agreement > 0.999999


DAMAGES = [
    no_positions,
    shifted_positions,
    no_token_types,
    no_mask,
    first_token_padded,
    frozen_length,
    frozen_batch,
    changed_bias,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_graph_fails(damage: Damage, traced: Traced, tmp_path: Path) -> None:
    graph = traced.graph()
    damage(graph)
    assert judge(traced, graph, tmp_path).failure() is not None


@pytest.fixture(
    scope="module", params=["SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM"]
)
def traced_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A model with a head, in PyTorch and as a traced graph."""
    task = {
        "SequenceClassification": "text-classification",
        "TokenClassification": "token-classification",
        "QuestionAnswering": "question-answering",
        "MaskedLM": "fill-mask",
    }[request.param]
    folder = save_bert(tmp_path_factory.mktemp("heads") / task, request.param)
    return trace_folder(folder, tmp_path_factory.mktemp("traced"), task)


@pytest.mark.parametrize("damage", [None, *DAMAGES, other_gaps, doubled])
def test_a_broken_graph_with_a_head_fails(damage: Damage | None, traced_head: Traced, tmp_path: Path) -> None:
    if damage is other_gaps and "mask_positions" not in traced_head.model.input_axes:
        pytest.skip("only fill-mask picks positions")
    graph = traced_head.graph()
    if damage is not None:
        damage(graph)
    failure = judge(traced_head, graph, tmp_path).failure()
    assert failure is None if damage is None else failure is not None


def test_padding_of_tokens_is_not_compared(traced_head: Traced, tmp_path: Path) -> None:
    """What a tagger says about padding means nothing; a graph may differ there."""
    for output in traced_head.model.outputs:
        if output.shape[1] != "sequence":
            pytest.skip("only outputs of tokens have padding")
    outputs = traced_head.model.outputs
    session = make_session(traced_head.path, SessionSettings(), settings=ServingSettings(1))
    plain = runner(session, [tensor.name for tensor in outputs])

    def run(feeds: Feeds) -> dict[str, Array]:
        found = {name: value.copy() for name, value in plain(feeds).items()}
        for value in found.values():
            value[feeds["attention_mask"] == 0] = 7.0
        return found

    assert check_parity(run, traced_head.cases, outputs, "max_abs", 1e-4).passed


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
    return Case("padded", {"attention_mask": mask}, {"sentence_embedding": expected}, real=True)


def verdict(run: Callable[[Feeds], Array]) -> Any:
    outputs = [Tensor("sentence_embedding", "float", ("batch", "2"))]
    return check_parity(lambda feeds: {"sentence_embedding": run(feeds)}, [padded_case()], outputs, "max_abs", 1e-4)


def test_padded_rows_are_not_compared() -> None:
    def run(feeds: Feeds) -> Array:
        rows = len(feeds["attention_mask"])
        return np.array([[1.0, 2.0], [7.0, 7.0]], np.float32)[:rows]

    assert verdict(run).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padded_rows_must_be_finite(value: float) -> None:
    def run(feeds: Feeds) -> Array:
        return np.array([[1.0, 2.0], [value, 0.0]], np.float32)[: len(feeds["attention_mask"])]

    assert "rows [1] of sentence_embedding are not finite" in verdict(run).failure()


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
