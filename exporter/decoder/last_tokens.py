"""Behind the last attention, only the tokens whose logits are wanted are computed.

A model computes its last layer for all tokens, and the language model head takes some. From the last attention on,
nothing looks at another token: taking them there gives the same and saves a prompt of many tokens the products of the
last layer, 3 % of its time where there are 30 layers.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir

from onnxpress.exporter.decoder.simplifying import along_last_axis
from onnxpress.exporter.graph_names import graph_input

__all__ = ["take_early"]

_ELEMENTWISE = {
    "Abs", "Add", "Cast", "CastLike", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "Greater", "HardSigmoid", "HardSwish",
    "Less", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish",
    "Tanh", "Where",
}  # fmt: skip
_SKIP_NORMS = {"SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}


def take_early(graph: onnx_ir.Model) -> None:
    """Move the selection of tokens as far to the front as it goes, in place, if that spares a product.

    Args:
        graph: of a decoder, whose GatherND takes the hidden states at `logit_index`; fused.
    """
    gather = _selection(graph)
    if gather is None:
        return
    _complete_shapes(graph)
    states, index = gather.inputs
    behind = _computed_by_token(graph, gather)
    if not any(node.op_type == "MatMul" for node in behind):
        return
    wanted = gather.outputs[0].shape[1]
    for value in _entering(behind, states.shape):
        taken = onnx_ir.node("GatherND", [value, index], attributes={"batch_dims": 1})
        taken.metadata_props.update(gather.metadata_props)
        taken.outputs[0].type, taken.outputs[0].shape = value.type, _with_tokens(value.shape, wanted)
        graph.graph.append(taken)
        for use in value.uses():
            if use.node in behind:
                use.node.replace_input_with(use.idx, taken.outputs[0])
    for value in (value for node in behind for value in node.outputs if value.shape is not None):
        value.shape = _with_tokens(value.shape, wanted)
    onnx_ir.convenience.replace_all_uses_with(gather.outputs[0], states)
    graph.graph.remove(gather, safe=True)
    graph.graph.sort()


def _selection(graph: onnx_ir.Model) -> onnx_ir.Node | None:
    """The node that takes the hidden states at `logit_index`."""
    positions = graph_input(graph, "logit_index")
    for node in graph.graph:
        index = node.inputs[1].producer() if node.op_type == "GatherND" and node.inputs[1] is not None else None
        if index is not None and index.inputs[0] is positions:
            return node
    return None


def _complete_shapes(graph: onnx_ir.Model) -> None:
    """torch.onnx leaves out those within an operator that it writes as several, such as SiLU and a linear layer."""
    for node in graph.graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.domain != "" or node.outputs[0].shape is not None or any(value.shape is None for value in inputs):
            continue
        if node.op_type == "MatMul" and _rank(inputs[1]) == 2:
            node.outputs[0].shape = onnx_ir.Shape([*list(inputs[0].shape)[:-1], inputs[1].shape[1]])
        elif node.op_type in _ELEMENTWISE:
            shapes = [value.shape for value in inputs if not (_constant(value) and _is_row(value))]
            if shapes and all(shape == shapes[0] for shape in shapes):
                node.outputs[0].shape = shapes[0]


def _computed_by_token(graph: onnx_ir.Model, gather: onnx_ir.Node) -> dict[onnx_ir.Node, None]:
    """The nodes that nothing but `gather` needs and whose results at a token follow from what is given at it; in an
    order that is the same each time."""
    shape = gather.inputs[0].shape
    behind: dict[onnx_ir.Node, None] = {}
    for node in reversed(list(graph.graph)):
        readers = {use.node for value in node.outputs for use in value.uses()}
        output = any(value.is_graph_output() for value in node.outputs)
        if readers and not output and readers <= behind.keys() | {gather} and _by_token(node, shape):
            behind[node] = None
    return behind


def _by_token(node: onnx_ir.Node, shape: onnx_ir.Shape) -> bool:
    """Whether a node computes each token by itself. `shape`: [batch, sequence, ...], as hidden states have it."""
    inputs = [value for value in node.inputs if value is not None]
    states = [value for value in inputs if not _constant(value)]
    results = [value for value in node.outputs if value.uses()]
    if not states or not all(_has_tokens(value, shape) for value in (*states, *results)):
        return False
    if node.op_type in _SKIP_NORMS:
        return True
    if node.domain != "":
        return False
    if node.op_type == "MatMul":
        return states == inputs[:1] and _rank(inputs[1]) == 2
    if node.op_type in _ELEMENTWISE:
        return all(_is_row(value) for value in inputs if _constant(value))
    return along_last_axis(node)


def _entering(nodes: Collection[onnx_ir.Node], shape: onnx_ir.Shape) -> list[onnx_ir.Value]:
    """Hidden states that nodes read of others."""
    given = (value for node in nodes for value in node.inputs if value is not None and not _constant(value))
    return [value for value in dict.fromkeys(given) if value.producer() not in nodes and _has_tokens(value, shape)]


def _constant(value: onnx_ir.Value) -> bool:
    """A weight, also one that is read transposed."""
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Transpose" and _constant(node.inputs[0]))


def _has_tokens(value: onnx_ir.Value, shape: onnx_ir.Shape) -> bool:
    return value.shape is not None and len(value.shape) == len(shape) and list(value.shape)[:2] == list(shape)[:2]


def _is_row(value: onnx_ir.Value) -> bool:
    """The same for all tokens."""
    return value.shape is not None and all(size == 1 for size in list(value.shape)[:-1])


def _rank(value: onnx_ir.Value) -> int:
    return -1 if value.shape is None else len(value.shape)


def _with_tokens(shape: onnx_ir.Shape, wanted: int | onnx_ir.SymbolicDim) -> onnx_ir.Shape:
    return onnx_ir.Shape([shape[0], wanted, *list(shape)[2:]])
