"""Weights as onnxruntime reads them fastest, each stored once.

A product with a weight is a MatMul whose weight is stored as [in, out], so that weight-only quantization finds it; a
bias is an Add after it. A weight that is also read elsewhere, as an embedding that is tied to the language model head
is, stays [out, in], and the product reads it through a Transpose, which onnxruntime computes once when it loads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

__all__ = ["arrange_weights", "separate_products"]


def separate_products(graph: onnx_ir.Model) -> None:
    """Turn each Gemm into MatMul and Add, in place."""
    for node in list(graph.graph):
        if node.op_type != "Gemm" or node.domain != "" or _number(node, "alpha") != 1 or _number(node, "beta") != 1:
            continue
        a, b, *bias = node.inputs
        a = _transposed(graph, node, a) if _number(node, "transA", 0) else a
        b = _transposed(graph, node, b) if _number(node, "transB", 0) else b
        result = node.outputs[0]
        product = _insert(graph, node, "MatMul", [a, b], result)
        final = _insert(graph, node, "Add", [product, bias[0]], result) if bias and bias[0] is not None else product
        _replace(graph, node, final)


def arrange_weights(graph: onnx_ir.Model) -> None:
    """Store weights as what a Transpose or Reshape makes of them, if nothing else reads them; in place.

    They are computed one by one when the graph is saved.
    """
    for node in list(graph.graph):
        if node.op_type not in ("Transpose", "Reshape") or node.domain != "":
            continue
        weight, result = node.inputs[0], node.outputs[0]
        if weight is None or not weight.is_initializer() or len(weight.uses()) != 1 or result.is_graph_output():
            continue
        if node.op_type == "Reshape" and onnx_ir.convenience.get_const_tensor(node.inputs[1]) is None:
            continue
        arranged = _arranged(node, weight)
        onnx_ir.convenience.replace_all_uses_with(result, arranged)
        graph.graph.remove(node, safe=True)
        del graph.graph.initializers[weight.name]
        graph.graph.initializers[arranged.name] = arranged


def _arranged(node: onnx_ir.Node, weight: onnx_ir.Value) -> onnx_ir.Value:
    """The weight a node makes of another, under the other's name."""
    source, result = weight.const_value, node.outputs[0]
    if node.op_type == "Transpose":
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        rank = len(source.shape)
        order = list(order) if order is not None else list(reversed(range(rank)))
        sizes = [source.shape[axis] for axis in order]

        def arrange(array: Any) -> Any:
            return array.transpose(order)
    else:
        spec = onnx_ir.convenience.get_const_tensor(node.inputs[1]).numpy().tolist()
        spec = [source.shape[axis] if size == 0 else size for axis, size in enumerate(spec)]
        known = int(np.prod([size for size in spec if size != -1], dtype=np.int64))
        total = int(np.prod(list(source.shape), dtype=np.int64))
        sizes = [total // known if size == -1 else size for size in spec]

        def arrange(array: Any) -> Any:
            return array.reshape(sizes)

    tensor = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(np.ascontiguousarray(arrange(source.numpy()))),
        dtype=source.dtype,
        shape=onnx_ir.Shape(sizes),
        name=weight.name,
    )
    return onnx_ir.Value(
        name=weight.name, shape=tensor.shape, type=result.type or onnx_ir.TensorType(source.dtype), const_value=tensor
    )


def _transposed(graph: onnx_ir.Model, before: onnx_ir.Node, value: onnx_ir.Value) -> onnx_ir.Value:
    node = onnx_ir.node("Transpose", [value], attributes={"perm": [1, 0]})
    if value.shape is not None:
        node.outputs[0].shape = onnx_ir.Shape([value.shape[1], value.shape[0]])
    node.outputs[0].type = value.type
    graph.graph.insert_before(before, node)
    return node.outputs[0]


def _insert(
    graph: onnx_ir.Model, before: onnx_ir.Node, op_type: str, inputs: list[onnx_ir.Value], like: onnx_ir.Value
) -> onnx_ir.Value:
    node = onnx_ir.node(op_type, inputs)
    node.metadata_props.update(before.metadata_props)
    node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    graph.graph.insert_before(before, node)
    return node.outputs[0]


def _replace(graph: onnx_ir.Model, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
    result = node.outputs[0]
    onnx_ir.convenience.replace_all_uses_with(result, value, replace_graph_outputs=True)
    name = result.name
    graph.graph.remove(node, safe=True)
    value.name = name


def _number(node: onnx_ir.Node, name: str, usual: float = 1.0) -> float:
    given = node.attributes.get(name)
    return usual if given is None else given.value
