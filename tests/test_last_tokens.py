"""Which tokens the products behind the last attention compute, and what must not be moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxpress.exporter.calibration import PrefillFeeds
from onnxpress.exporter.decoder.last_tokens import take_early
from onnxpress.quantize.probing import open_probe
from tests.decoder_models import make_decoder, trace

Array = npt.NDArray[Any]
WIDTH = 6


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_products_behind_the_last_attention_see_the_wanted_tokens_alone(family: str, tmp_path: Path) -> None:
    path, _ = trace(make_decoder(family), tmp_path)
    nodes = list(onnx.load(str(path), load_external_data=False).graph.node)
    last = max(place for place, node in enumerate(nodes) if node.op_type == "GroupQueryAttention")
    read = {node.input[0] for node in nodes[last:] if node.op_type == "MatMul"}
    assert len(read) >= 4  # of attention's output, the MLP twice, the head
    feeds = {**PrefillFeeds(path, [[5, 7, 9, 11, 13]])[0], "logit_index": np.array([[4, 1]])}
    assert {value.shape[1] for value in open_probe(path, read).run(list(read), feeds)} == {2}


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), [output], **attributes)


def selecting(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """A graph from `states` through nodes to `last`, of which the tokens at `logit_index` are taken."""
    rng = np.random.default_rng(0)
    weights = {"W": (WIDTH, WIDTH), "V": (WIDTH, WIDTH), "bias": (WIDTH,), "by_token": (1, 4, WIDTH)}
    shape, wide = ["batch", "sequence", WIDTH], ["batch", "positions", WIDTH]
    graph = helper.make_graph(
        [
            *nodes,
            node("Unsqueeze", ["logit_index", "axis"], "index"),
            node("GatherND", ["last", "index"], "taken", batch_dims=1),
            node("MatMul", ["taken", "V"], "logits"),
        ],
        "selecting",
        [
            helper.make_tensor_value_info("states", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("logit_index", TensorProto.INT64, ["batch", "positions"]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, wide),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs),
        ],
        [
            *(
                onnx.numpy_helper.from_array(rng.normal(0, 0.5, size).astype(np.float32), name)
                for name, size in weights.items()
            ),
            onnx.numpy_helper.from_array(np.array([2]), "axis"),
            onnx.numpy_helper.from_array(np.array(1), "along"),
        ],
        value_info=[
            helper.make_tensor_value_info(made.output[0], TensorProto.FLOAT, shape)
            for made in nodes
            if made.output[0] not in outputs
        ]
        + [
            helper.make_tensor_value_info("index", TensorProto.INT64, ["batch", "positions", 1]),
            helper.make_tensor_value_info("taken", TensorProto.FLOAT, wide),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def moved(model: onnx.ModelProto) -> list[str]:
    """What stands before the first selection once they are moved; the graph must compute what it did."""
    graph = onnx_ir.serde.deserialize_model(model)
    take_early(graph)
    after = onnx_ir.serde.serialize_model(graph)
    feeds = {
        "states": np.random.default_rng(1).normal(size=(2, 4, WIDTH)).astype(np.float32),
        "logit_index": np.array([[3, 0], [1, 1]]),
    }
    expected, found = (ReferenceEvaluator(one).run(None, feeds) for one in (model, after))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(after)
    order = [made.op_type for made in after.graph.node if made.op_type != "Unsqueeze"]
    return order[: order.index("GatherND")]


MLP = (node("MatMul", ["states", "W"], "up"), node("Add", ["up", "bias"], "biased"), node("Tanh", ["biased"], "acted"))


def test_the_selection_goes_before_all_that_works_token_by_token() -> None:
    model = selecting([*MLP, node("MatMul", ["acted", "V"], "down"), node("Add", ["down", "states"], "last")])
    assert moved(model) == []


def test_states_that_are_read_twice_are_taken_once() -> None:
    model = selecting([*MLP, node("Add", ["acted", "states"], "last")])
    graph = onnx_ir.serde.deserialize_model(model)
    take_early(graph)
    assert Counter(made.op_type for made in graph.graph)["GatherND"] == 1


@pytest.mark.parametrize(
    ("between", "stays"),
    [
        (node("CumSum", ["acted", "along"], "last"), ["MatMul", "Add", "Tanh", "CumSum"]),
        (node("Softmax", ["acted"], "last", axis=1), ["MatMul", "Add", "Tanh", "Softmax"]),
        (node("Add", ["acted", "by_token"], "last"), ["MatMul", "Add", "Tanh", "Add"]),
    ],
)
def test_what_looks_at_other_tokens_or_differs_by_token_stays(between: onnx.NodeProto, stays: list[str]) -> None:
    assert moved(selecting([*MLP, between])) == stays


def test_what_something_else_needs_of_all_tokens_stays() -> None:
    model = selecting([*MLP, node("MatMul", ["acted", "V"], "last")], outputs=["acted"])
    assert moved(model) == ["MatMul", "Add", "Tanh"]


def test_nothing_is_moved_that_spares_no_product() -> None:
    model = selecting([*MLP, node("CumSum", ["acted", "along"], "summed"), node("Tanh", ["summed"], "last")])
    assert moved(model) == ["MatMul", "Add", "Tanh", "CumSum", "Tanh"]
