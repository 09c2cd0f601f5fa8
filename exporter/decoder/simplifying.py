"""What is superfluous in a graph as torch.onnx writes it: thousands of nodes that compute sizes, pairs that cancel out.

`simplify` runs a table of steps that use the sizes torch.export proved for every value. Nothing here knows what a
decoder is, and nothing changes what a graph computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from onnxpress.exporter.decoder.weights import arrange_weights, separate_products

__all__ = ["along_last_axis", "clean", "simplify"]

_SMALL = 2**16
"""Elements up to which a constant is computed in advance."""
_IDLE = {"Reshape", "Expand", "Slice", "Transpose", "Cast", "Identity", "Dropout"}
"""Operators that can turn out to do nothing."""
_COMPUTED = {
    "Add", "Cast", "Concat", "Cos", "Div", "Equal", "Expand", "Gather", "Max", "Min", "Mul", "Neg", "Pow", "Range",
    "Reciprocal", "Reshape", "Shape", "Sin", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators whose results are computed in advance where they are known."""


def simplify(graph: onnx_ir.Model) -> None:
    """Run all steps on a graph, in place."""
    for step in _STEPS:
        step(graph)


def clean(graph: onnx_ir.Model) -> None:
    """Remove what nothing reads, in place."""
    for step in _CLEANING:
        step(graph)


def _reshape_to_constants(graph: onnx_ir.Model) -> None:
    """Give each Reshape its shape as a constant: 0 for a size that stays, -1 for one that follows from the others."""
    for node in list(graph.graph):
        if node.op_type == "Reshape" and node.domain == "":
            _set_shape(graph, node, node.inputs[0])


def _set_shape(graph: onnx_ir.Model, node: onnx_ir.Node, source: onnx_ir.Value) -> bool:
    """Reshape `source` to what the node returns by a constant shape; False if no constant says it."""
    wanted, given = _sizes(node.outputs[0]), _sizes(source)
    if wanted is None or given is None:
        return False
    sizes: list[int] = []
    for axis, size in enumerate(wanted):
        if isinstance(size, int):
            sizes.append(size)
        elif axis < len(given) and given[axis] == size:
            sizes.append(0)
        else:
            sizes.append(-1)
    if sizes.count(-1) > 1 or (0 in wanted):
        return False
    node.replace_input_with(0, source)
    node.replace_input_with(1, _constant(graph, np.array(sizes, np.int64)))
    if "allowzero" in node.attributes:
        node.attributes.pop("allowzero")
    return True


def _cancel(graph: onnx_ir.Model) -> None:
    """Remove nodes that return what they are given, and make one of two in a row."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.graph):
            if node.domain != "" or node.op_type not in _IDLE:
                continue
            source = node.inputs[0]
            if _does_nothing(node):
                changed |= _bypass(graph, node, source)
            elif (before := source.producer()) is not None and before.op_type == node.op_type:
                changed |= _merge(graph, node, before)


def _does_nothing(node: onnx_ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        return not node.outputs[1:] or not node.outputs[1].uses()  # a model is traced in evaluation mode
    if node.op_type == "Cast":
        return source.dtype is not None and source.dtype == result.dtype
    if node.op_type == "Transpose":
        order = _order(node)
        return order == sorted(order)
    if node.op_type == "Slice" and len(node.inputs) > 4 and not _all_ones(node.inputs[4]):
        return False
    sizes = _sizes(source)
    return sizes is not None and sizes == _sizes(result)


def _merge(graph: onnx_ir.Model, node: onnx_ir.Node, before: onnx_ir.Node) -> bool:
    """Let a node do what the one before it does too."""
    source = before.inputs[0]
    if node.op_type == "Transpose":
        first = _order(before)
        node.attributes["perm"] = onnx_ir.AttrInt64s("perm", [first[axis] for axis in _order(node)])
        node.replace_input_with(0, source)
        return True
    return node.op_type == "Reshape" and _set_shape(graph, node, source)


def _bypass(graph: onnx_ir.Model, node: onnx_ir.Node, source: onnx_ir.Value) -> bool:
    """Have what reads a node read `source`; a node that makes an output of the graph stays."""
    result = node.outputs[0]
    if result.is_graph_output():
        return False
    onnx_ir.convenience.replace_all_uses_with(result, source)
    graph.graph.remove(node, safe=True)
    return True


def _transpose_later(graph: onnx_ir.Model) -> None:
    """Move a Transpose behind what works along the last axis, if it leaves that axis in place.

    It then often meets one that undoes it.
    """
    for node in list(graph.graph):
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if before is None or before.op_type != "Transpose" or before.domain or not along_last_axis(node):
            continue
        order = _order(before)
        if order[-1] != len(order) - 1:
            continue
        node.replace_input_with(0, before.inputs[0])
        for result in node.outputs:
            turned = onnx_ir.node("Transpose", [result], attributes={"perm": order})
            turned.outputs[0].type, turned.outputs[0].shape = result.type, result.shape
            if result.shape is not None:
                sizes = list(result.shape)
                result.shape = onnx_ir.Shape([sizes[order.index(axis)] for axis in range(len(order))])
            onnx_ir.convenience.replace_all_uses_with(result, turned.outputs[0])
            turned.replace_input_with(0, result)
            graph.graph.insert_after(node, turned)


def along_last_axis(node: onnx_ir.Node) -> bool:
    """Whether a Split, Slice or normalisation works along the last axis alone."""
    if node.domain or any(result.is_graph_output() for result in node.outputs):
        return False
    rank = len(node.inputs[0].shape or ())
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else None
    if node.op_type in ("RMSNormalization", "LayerNormalization"):
        return axis in (-1, rank - 1, None) and len(node.inputs[1].shape or ()) == 1
    if node.op_type == "Split":
        return axis in (-1, rank - 1)
    if node.op_type == "Slice" and len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = onnx_ir.convenience.get_const_tensor(node.inputs[3])
        return axes is not None and axes.numpy().tolist() in ([-1], [rank - 1])
    return False


def _split_at_once(graph: onnx_ir.Model) -> None:
    """Split tensors into tensors, not into a sequence that is then looked into, which cannot hold bfloat16."""
    for node in list(graph.graph):
        if node.op_type != "SplitToSequence":
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        places = [onnx_ir.convenience.get_const_tensor(reader.inputs[-1]) for reader in readers]
        lengths = _lengths(node)
        if lengths is None or None in places or any(reader.op_type != "SequenceAt" for reader in readers):
            continue
        wanted = _constant(graph, np.array(lengths, np.int64))
        made = onnx_ir.node("Split", [node.inputs[0], wanted], {"axis": _axis(node)}, num_outputs=len(lengths))
        graph.graph.insert_before(node, made)
        for reader, place in zip(readers, places, strict=True):
            result = made.outputs[int(place.numpy())]
            result.type, result.shape = reader.outputs[0].type, reader.outputs[0].shape
            onnx_ir.convenience.replace_all_uses_with(reader.outputs[0], result)
            graph.graph.remove(reader, safe=True)
        graph.graph.remove(node, safe=True)


def _lengths(node: onnx_ir.Node) -> list[int] | None:
    """Of the parts that a SplitToSequence makes; None where no constant says it."""
    given = onnx_ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    if given.numpy().ndim:
        lengths: list[int] = given.numpy().tolist()
        return lengths
    shape = node.inputs[0].shape
    size = None if shape is None else shape[_axis(node)]
    each = int(given.numpy())
    return [min(each, size - start) for start in range(0, size, each)] if isinstance(size, int) else None


def _axis(node: onnx_ir.Node) -> int:
    return int(node.attributes["axis"].as_int()) if "axis" in node.attributes else 0


def _compute_constants(graph: onnx_ir.Model) -> None:
    """Compute small values that depend on constants and weights alone; how weights lie in memory is for later."""
    for node in list(graph.graph):
        if node.domain != "" or node.op_type not in _COMPUTED or node.outputs[0].is_graph_output():
            continue
        if node.op_type in ("Transpose", "Reshape") and len(node.inputs[0].shape or ()) > 1:
            continue
        inputs = [None if value is None else onnx_ir.convenience.get_const_tensor(value) for value in node.inputs]
        missing = [value for value, tensor in zip(node.inputs, inputs, strict=True) if value is not None and not tensor]
        if missing or not inputs or not all(_is_small(value) for value in (*inputs, *node.outputs)):
            continue
        _compute(graph, node, inputs)


def _compute(graph: onnx_ir.Model, node: onnx_ir.Node, inputs: Sequence[Any]) -> None:
    feeds = {value.name: tensor.numpy() for value, tensor in zip(node.inputs, inputs, strict=True) if value is not None}
    evaluator = ReferenceEvaluator(onnx_ir.to_proto(node), opsets=dict(graph.opset_imports))
    for result, computed in zip(node.outputs, evaluator.run(None, feeds), strict=True):
        constant = _constant(graph, np.asarray(computed))
        onnx_ir.convenience.replace_all_uses_with(result, constant)
    graph.graph.remove(node, safe=True)


def _is_small(value: Any) -> bool:
    if value is None:
        return True
    sizes = list(value.shape) if isinstance(value, onnx_ir.TensorProtocol) else _sizes(value)
    return sizes is None or (all(isinstance(size, int) for size in sizes) and math.prod(map(int, sizes)) <= _SMALL)


def _constant(graph: onnx_ir.Model, array: Any) -> onnx_ir.Value:
    """A new initializer."""
    name = f"constant_{len(graph.graph.initializers)}"
    while name in graph.graph.initializers:
        name += "_"
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
    graph.graph.initializers[name] = value
    return value


def _sizes(value: onnx_ir.Value) -> list[int | str] | None:
    """Of each axis: a number or a name; None where one is unknown."""
    if value.shape is None:
        return None
    sizes = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return None if None in sizes else sizes


def _order(node: onnx_ir.Node) -> list[int]:
    given = node.attributes.get("perm")
    return list(given.as_ints()) if given is not None else list(reversed(range(len(node.inputs[0].shape))))


def _all_ones(value: onnx_ir.Value | None) -> bool:
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return tensor is not None and bool(np.all(tensor.numpy() == 1))


_STEPS: tuple[Callable[[onnx_ir.Model], Any], ...] = (
    common.CommonSubexpressionEliminationPass(),
    _reshape_to_constants,
    common.RemoveUnusedNodesPass(),
    _split_at_once,
    _compute_constants,
    _transpose_later,
    _cancel,
    separate_products,
    arrange_weights,
    _compute_constants,
    common.CommonSubexpressionEliminationPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(size_limit=1024),
    common.RemoveUnusedNodesPass(),
)
"""In this order."""
_CLEANING: tuple[Callable[[onnx_ir.Model], Any], ...] = (
    common.RemoveUnusedNodesPass(),
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
)
