"""Fewer and larger operators where onnxruntime has them: at one token a step, each node costs more than its numbers.

- A sum and the normalisation after it: one SkipSimplifiedLayerNormalization or SkipLayerNormalization, which returns
  both.
- Projections to queries, keys and values of the same states: one product with the three weights side by side, which
  GroupQueryAttention takes as it is ("packed"). Rotary embedding of queries and keys moves into GroupQueryAttention;
  it reads cos and sin from tables over all positions, which are computed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx.reference import ReferenceEvaluator

from onnxpress.exporter.graph_names import graph_input

__all__ = ["fuse"]

_DOMAIN = "com.microsoft"
_NORMS = {
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "LayerNormalization": "SkipLayerNormalization",
}
_HEAD_ALIGNMENT, _PAIR_ALIGNMENT = 16, 8
"""What head dimensions and pairs must be multiples of for rotary embedding inside GroupQueryAttention."""


def fuse(graph: onnx_ir.Model, context: int) -> None:
    """Fuse in place.

    Args:
        graph: of a decoder, simplified.
        context: tokens at most.
    """
    _fuse_norms(graph)
    _fuse_projections(graph, context)


# --- sums and norms ---


def _fuse_norms(graph: onnx_ir.Model) -> None:
    for node in list(graph.graph):
        if node.domain != "" or node.op_type not in _NORMS or not _normalises_last_axis(node):
            continue
        states, *weights = node.inputs
        total = states.producer()
        if total is None or total.domain != "" or total.op_type != "Add" or states.is_graph_output():
            continue
        # The fused node stands where the sum stood, before whatever else reads the sum.
        if not all(weight.is_initializer() for weight in weights) or not _same_shape(*total.inputs, states):
            continue
        fused = onnx_ir.node(
            _NORMS[node.op_type],
            [*total.inputs, *weights],
            attributes={"epsilon": node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5},
            domain=_DOMAIN,
            num_outputs=4 if len(states.uses()) > 1 else 1,
            version=1,
        )
        fused.metadata_props.update(node.metadata_props)
        graph.graph.insert_before(total, fused)
        for value in fused.outputs[1:3]:
            value.name = ""  # mean and deviation, which nobody reads
        for value, old in zip((fused.outputs[0], *fused.outputs[3:]), (node.outputs[0], states), strict=False):
            value.type, value.shape = old.type, old.shape
            onnx_ir.convenience.replace_all_uses_with(old, value)
        graph.graph.remove([node, total], safe=True)


def _normalises_last_axis(node: onnx_ir.Node) -> bool:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    rank = len(node.inputs[0].shape or ())
    flat = all(weight is not None and weight.shape is not None and len(weight.shape) == 1 for weight in node.inputs[1:])
    return axis in (-1, rank - 1) and rank == 3 and flat


def _same_shape(*values: onnx_ir.Value) -> bool:
    shapes = [value.shape for value in values]
    return None not in shapes and all(shape == shapes[0] for shape in shapes)


# --- projections ---


@dataclasses.dataclass(frozen=True)
class _Projection:
    """`states` times a weight, and a bias."""

    states: onnx_ir.Value
    weight: onnx_ir.Value
    bias: onnx_ir.Value | None


@dataclasses.dataclass(frozen=True)
class _Rotary:
    """How queries and keys are turned."""

    cos: onnx_ir.Value
    sin: onnx_ir.Value
    interleaved: int


def _fuse_projections(graph: onnx_ir.Model, context: int) -> None:
    tables: dict[onnx_ir.Value, onnx_ir.Value] = {}
    for node in list(graph.graph):
        if node.domain != _DOMAIN or node.op_type != "GroupQueryAttention":
            continue
        (query, turned), (key, key_turned) = (_turned(value) for value in node.inputs[:2])
        if turned != key_turned or (turned is not None and not _fits(node, turned)):
            continue
        packed = _pack(graph, node, (query, key, node.inputs[2]))
        if packed is None:
            continue
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        inputs = [packed, None, None, *node.inputs[3:7], *[None] * 5]
        inputs[10:] = [*node.inputs[10:], None, None][:2]
        if turned is not None:
            for place, kind, values in ((7, "cos", turned.cos), (8, "sin", turned.sin)):
                if values not in tables:
                    tables[values] = _table(graph, values, context, f"rotary.{len(tables) // 2}.{kind}")
                inputs[place] = tables[values]
            inputs[9] = graph_input(graph, "position_ids")
            attributes |= {"do_rotary": 1, "rotary_interleaved": turned.interleaved}
        while inputs[-1] is None:
            inputs.pop()
        fused = onnx_ir.node(
            node.op_type, inputs, attributes=attributes, domain=_DOMAIN, num_outputs=len(node.outputs), version=1
        )
        fused.metadata_props.update(node.metadata_props)
        graph.graph.insert_before(node, fused)
        for value, old in zip(fused.outputs, node.outputs, strict=True):
            value.type, value.shape, name = old.type, old.shape, old.name
            onnx_ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
            old.name, value.name = None, name
        graph.graph.remove(node, safe=True)


def _turned(value: onnx_ir.Value) -> tuple[onnx_ir.Value, _Rotary | None]:
    """What a value was before rotary embedding, and how it was turned."""
    node = value.producer()
    if node is None or node.op_type != "RotaryEmbedding" or node.domain != "":
        return value, None
    states, cos, sin = node.inputs[:3]
    return states, _Rotary(cos, sin, node.attributes["interleaved"].as_int())


def _fits(attention: onnx_ir.Node, turned: _Rotary) -> bool:
    head_dim, pairs = attention.inputs[3].shape[3], turned.cos.shape[-1]
    return (
        isinstance(head_dim, int)
        and isinstance(pairs, int)
        and head_dim % _HEAD_ALIGNMENT == 0
        and pairs % _PAIR_ALIGNMENT == 0
    )


def _pack(graph: onnx_ir.Model, attention: onnx_ir.Node, parts: Sequence[onnx_ir.Value]) -> onnx_ir.Value | None:
    """Queries, keys and values side by side: [batch, sequence, (heads + 2 kv_heads) d]."""
    whole = _split_from(parts)
    if whole is not None:
        return whole
    projections = [_projection(value) for value in parts]
    first = projections[0]
    if first is None or any(
        other is None or other.states is not first.states or (other.bias is None) != (first.bias is None)
        for other in projections
    ):
        return None
    before = parts[0].producer()
    weight = _side_by_side(graph, [projection.weight for projection in projections if projection])
    packed = _node(graph, before, "MatMul", [first.states, weight])
    if first.bias is not None:
        biases = [projection.bias for projection in projections if projection and projection.bias]
        packed = _node(graph, before, "Add", [packed, _side_by_side(graph, biases)])
    return packed


def _split_from(parts: Sequence[onnx_ir.Value]) -> onnx_ir.Value | None:
    """What the parts are all of, in this order and nothing else, if one node or three cut it along the last axis."""
    nodes = [value.producer() for value in parts]
    if nodes[0] is None or any(
        node is None or node.domain or node.inputs[0] is not nodes[0].inputs[0] for node in nodes
    ):
        return None
    whole = nodes[0].inputs[0]
    rank, width = len(whole.shape or ()), whole.shape[-1] if whole.shape else None
    if all(node is nodes[0] for node in nodes) and nodes[0].op_type == "Split":
        axis = nodes[0].attributes["axis"].as_int() if "axis" in nodes[0].attributes else 0
        return whole if axis in (-1, rank - 1) and list(nodes[0].outputs) == list(parts) else None
    if any(node.op_type != "Slice" for node in nodes) or not isinstance(width, int):
        return None
    end = 0
    for node in nodes:
        numbers = [onnx_ir.convenience.get_const_tensor(value) for value in node.inputs[1:]]
        if len(numbers) < 3 or any(number is None or number.size != 1 for number in numbers):
            return None
        start, stop, axis, *step = (int(number.numpy().item()) for number in numbers)
        if axis not in (-1, rank - 1) or start != end or step not in ([], [1]):
            return None
        end = min(stop, width)
    return whole if end == width else None


def _projection(value: onnx_ir.Value) -> _Projection | None:
    node, bias = value.producer(), None
    if node is not None and node.op_type == "Add" and node.domain == "":
        # The order of a sum is the tracer's affair.
        biases = [given for given in node.inputs if given.is_initializer() and len(given.shape) == 1]
        products = [given for given in node.inputs if given not in biases]
        if len(biases) != 1 or not _read_once(biases[0]) or len(value.uses()) != 1:
            return None
        bias, node, value = biases[0], products[0].producer(), products[0]
    if node is None or node.op_type != "MatMul" or node.domain or len(value.uses()) != 1:
        return None
    states, weight = node.inputs
    if not weight.is_initializer() or not _read_once(weight) or len(weight.shape) != 2:
        return None
    return _Projection(states, weight, bias)


def _read_once(value: onnx_ir.Value) -> bool:
    return len(value.uses()) == 1


def _side_by_side(graph: onnx_ir.Model, parts: Sequence[onnx_ir.Value]) -> onnx_ir.Value:
    """A new weight of several, along the last axis, computed when it is saved."""
    tensors = [part.const_value for part in parts]
    shape = onnx_ir.Shape([*list(tensors[0].shape)[:-1], sum(tensor.shape[-1] for tensor in tensors)])
    name = "+".join([parts[0].name, *(part.name.rsplit(".", 2)[-2] for part in parts[1:] if "." in part.name)])
    tensor = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=-1)),
        dtype=tensors[0].dtype,
        shape=shape,
        name=name,
    )
    return _initializer(graph, name, tensor)


def _table(graph: onnx_ir.Model, values: onnx_ir.Value, context: int, name: str) -> onnx_ir.Value:
    """cos or sin of every position, [context, pairs], from what the graph computes of position_ids.

    Every value between is a function of the position alone, whatever else is in the batch.
    """
    positions = graph_input(graph, "position_ids")
    nodes: list[onnx_ir.Node] = []
    constants: dict[str, Any] = {}
    open_values = [values]
    seen = set()
    while open_values:
        value = open_values.pop()
        if value is positions or value in seen:
            continue
        seen.add(value)
        tensor = onnx_ir.convenience.get_const_tensor(value)
        if tensor is not None:
            constants[value.name] = tensor.numpy()
            continue
        node = value.producer()
        nodes.append(node)
        open_values.extend(given for given in node.inputs if given is not None)
    order = {node: place for place, node in enumerate(graph.graph)}
    nodes = sorted(dict.fromkeys(nodes), key=order.__getitem__)
    types = onnx.TensorProto
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx_ir.to_proto(node) for node in nodes],
            "table",
            [onnx.helper.make_tensor_value_info("position_ids", types.INT64, None)],
            [onnx.helper.make_tensor_value_info(values.name, types.FLOAT, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid(*item) for item in graph.opset_imports.items()],
    )
    (table,) = ReferenceEvaluator(proto).run(None, {"position_ids": np.arange(context)[None]})
    return _initializer(graph, name, onnx_ir.tensor(np.ascontiguousarray(table[0], np.float32)))


# --- small things ---


def _initializer(graph: onnx_ir.Model, name: str, tensor: Any) -> onnx_ir.Value:
    value = onnx_ir.Value(name=name, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
    graph.graph.initializers[name] = value
    return value


def _node(graph: onnx_ir.Model, before: onnx_ir.Node, op_type: str, inputs: Sequence[onnx_ir.Value]) -> onnx_ir.Value:
    node = onnx_ir.node(op_type, inputs)
    node.metadata_props.update(before.metadata_props)
    result = node.outputs[0]
    states, weight = inputs
    result.type = states.type
    result.shape = onnx_ir.Shape([*list(states.shape)[:-1], weight.shape[-1]])
    graph.graph.insert_before(before, node)
    return result
