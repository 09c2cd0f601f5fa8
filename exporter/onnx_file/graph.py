"""A graph that somebody else wrote, given the form of ours: inputs, outputs, names of axes, a recent enough opset.

What the graph computes stays as it is, except that a graph for fill-mask scores the vocabulary at the masks alone.
Weights stay on the disk until the graph is written. Runs nothing; `reference.py` does.

Sizes: b batch, s sequence, m masks, h hidden size, v vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir
from onnx_ir.passes import common as passes

from onnxpress.exporter.graph_names import graph_input
from onnxpress.runtime.errors import UnsupportedModelError, first_line
from onnxpress.runtime.manifest import Tensor

OLDEST_OPSET = 13
"""The first whose Split, Squeeze and sums have the form that the passes of quantize/ and the fusions write."""
HEAD_OPSET = 20  # what heads are traced with, see tracing.OPSET, which needs torch
_IR_VERSION = 10  # what torch writes; onnxruntime 1.28 reads it
_FIRST_LAYER_NORM = 17
_ASIDE = "onnxpress.aside"  # a domain whose operators onnx's converter passes over

_QUANTIZED = re.compile(r"[Qq]uantiz|^Q[A-Z]|Integer|NBits|Bnb4|FpQ4")  # of operators, also onnxruntime's own
_FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)
_NARROW = re.compile(r"B?FLOAT(16|8|4)|U?INT4")  # of the names of types


def read_program(path: Path, weights: Mapping[str, Path]) -> onnx_ir.Model:
    """An ONNX file without functions, constants among its initializers, and no initializer among its inputs.

    Args:
        path: the file.
        weights: where its external data is, by the name it has there (`folder.weight_files`).
    """
    program = onnx_ir.load(path)
    for value in program.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor):
            file = weights[str(tensor.location)]
            value.const_value = onnx_ir.ExternalTensor(
                file.name, tensor.offset, tensor.length, tensor.dtype,
                shape=tensor.shape, name=tensor.name, base_dir=file.parent,
            )  # fmt: skip
    if program.functions:
        passes.InlinePass()(program)
    passes.RemoveInitializersFromInputsPass()(program)
    passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(program)
    # Traces of the machine it was made on, and of no use here.
    passes.ClearMetadataAndDocStringPass()(program)
    program.ir_version = max(program.ir_version, _IR_VERSION)
    return program


def refuse_converted(program: onnx_ir.Model, path: Path) -> None:
    """
    Raises:
        UnsupportedModelError: the graph is quantized, or its weights are in half precision.
    """
    quantized = Counter(node.op_type for node in program.graph.all_nodes() if _QUANTIZED.search(node.op_type))
    if quantized:
        listed = ", ".join(f"{count} {name}" for name, count in quantized.most_common(3))
        raise UnsupportedModelError(f"{path} is already quantized ({listed} nodes); give the float32 model")
    names = [tensor.dtype.name for tensor in _tensors(program)]
    halves = Counter(name.lower() for name in names if _NARROW.match(name))
    if halves:
        listed = ", ".join(f"{count} of {name}" for name, count in halves.most_common(3))
        raise UnsupportedModelError(f"the weights of {path} have fewer bits ({listed}); give the float32 model")


def count_parameters(program: onnx_ir.Model) -> int:
    """Number of weights."""
    return sum(tensor.size for tensor in _tensors(program) if tensor.dtype in _FLOATS)


def embedding_rows(program: onnx_ir.Model) -> int | None:
    """Rows of the table that token ids are looked up in; None where it is not found."""
    pending = [value for value in program.graph.inputs if value.name == "input_ids"]
    while pending:
        value = pending.pop()
        for use in value.uses():
            node, table = use.node, None
            if node.op_type == "Gather" and use.idx == 1:
                table = node.inputs[0]
            elif node.op_type == "EmbedLayerNormalization" and use.idx == 0:
                table = node.inputs[2]
            elif node.op_type in ("Cast", "Identity"):
                pending.append(node.outputs[0])
            if table is not None and table.const_value is not None:
                return int(table.const_value.shape[0])
    return None


def raise_opset(program: onnx_ir.Model, version: int, path: Path) -> None:
    """Bring a graph to a newer operator set, if it is older.

    Raises:
        UnsupportedModelError: onnx cannot.
    """
    from onnxscript.version_converter import ConvertVersionPass

    older = program.graph.opset_imports.get("", version)
    if older >= version:
        return
    # onnxruntime's optimizer writes this operator into older graphs too, where onnx does not know it.
    hidden = [node for node in program.graph.all_nodes() if older < _FIRST_LAYER_NORM and _is_layer_norm(node)]
    for node in hidden:
        node.domain = _ASIDE
        program.graph.opset_imports[_ASIDE] = 1
    reason = "a node has no newer form"
    try:
        ConvertVersionPass(version, fallback=True)(program)
    # The two converters raise many types; each means the same to the user.
    except Exception as error:  # noqa: BLE001
        reason = first_line(error)
    for node in program.graph.all_nodes():
        node.domain = "" if node.domain == _ASIDE else node.domain
    if program.graph.opset_imports.get("") != version:
        raise UnsupportedModelError(
            f"{path} is written in ONNX opset {older}, which cannot be brought to opset {version} ({reason}); export "
            "the model again with a newer opset"
        )
    program.graph.opset_imports.pop(_ASIDE, None)


def set_inputs(program: onnx_ir.Model, inputs: Sequence[Tensor]) -> None:
    """Give a graph exactly these inputs, int64, in this order. One that is int32 is cast; one that it has and that is
    not listed becomes zeros."""
    graph = program.graph
    given = {str(value.name): value for value in graph.inputs}
    _rename_axes(program, inputs)
    graph.inputs.clear()
    for tensor in inputs:
        value = given.pop(tensor.name, None)
        if value is None or value.dtype != onnx_ir.DataType.INT64:
            wanted = _value(tensor.name, onnx_ir.DataType.INT64)
            if value is not None:
                assert value.dtype is not None
                _replace(graph, value, onnx_ir.node("Cast", [wanted], {"to": value.dtype.value}))
            value = wanted
        value.shape = onnx_ir.Shape(tensor.shape)
        graph.inputs.append(value)
    for value in given.values():
        # Any input minus itself has the shape, and is free of the rules by which opsets write shapes.
        zeros = onnx_ir.node("Sub", [graph.inputs[0], graph.inputs[0]])
        if value.dtype != onnx_ir.DataType.INT64:
            assert value.dtype is not None
            graph.insert_before(graph[0], zeros)
            zeros = onnx_ir.node("Cast", [zeros.outputs[0]], {"to": value.dtype.value})
            _replace(graph, value, zeros, after=graph[0])
        else:
            _replace(graph, value, zeros)


def pick_masks(program: onnx_ir.Model, logits: onnx_ir.Value) -> onnx_ir.Value:
    """Logits [b, m, v] at the input `mask_positions` [b, m] of a graph with logits [b, s, v].

    The hidden states are picked where the last product is seen to be the one with the vocabulary, most of the work of
    a small model; else the logits are.
    """
    positions = graph_input(program, "mask_positions")
    shape = onnx_ir.tensor([0, 0, 1], dtype=onnx_ir.DataType.INT64)  # 0: as it is
    sizes = _constant(program.graph, "mask_positions_shape", shape)
    product = _vocabulary_product(logits)
    hidden = logits if product is None else product.inputs[0]
    index = onnx_ir.node("Reshape", [positions, sizes])  # [b, m, 1]
    picked = onnx_ir.node("GatherND", [hidden, index.outputs[0]], {"batch_dims": 1})  # [b, m, h or v]
    if product is None:
        program.graph.extend([index, picked])
        return picked.outputs[0]
    program.graph.insert_before(product, [index, picked])
    product.replace_input_with(0, picked.outputs[0])
    product.outputs[0].shape = logits.shape = None
    return logits


def fill_empty(program: onnx_ir.Model, value: onnx_ir.Value, rank: int) -> onnx_ir.Value:
    """A value [b, ...] of a rank with zeros where a text has no token: where(sum(attention_mask) > 0, value, 0)."""
    mask = graph_input(program, "attention_mask")
    constants = {
        "tokens_axis": onnx_ir.tensor([1], dtype=onnx_ir.DataType.INT64),
        "tokens_shape": onnx_ir.tensor([-1, *[1] * (rank - 1)], dtype=onnx_ir.DataType.INT64),
        "no_tokens": onnx_ir.tensor([0], dtype=onnx_ir.DataType.INT64),
        "empty_value": onnx_ir.tensor([0.0], dtype=onnx_ir.DataType.FLOAT),
    }
    axis, shape, none, zero = (_constant(program.graph, name, tensor) for name, tensor in constants.items())
    tokens = onnx_ir.node("ReduceSum", [mask, axis], {"keepdims": 1})  # [b, 1]
    shaped = onnx_ir.node("Reshape", [tokens.outputs[0], shape])  # [b, 1, ...]
    filled = onnx_ir.node("Greater", [shaped.outputs[0], none])
    chosen = onnx_ir.node("Where", [filled.outputs[0], value, zero])
    program.graph.extend([tokens, shaped, filled, chosen])
    return chosen.outputs[0]


def set_outputs(program: onnx_ir.Model, values: Sequence[onnx_ir.Value], outputs: Sequence[Tensor]) -> None:
    """Give a graph these outputs, float32, under their names, and drop what nothing reads any more."""
    graph = program.graph
    graph.outputs.clear()
    for value, tensor in zip(values, outputs, strict=True):
        value.name = tensor.name
        value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        value.shape = onnx_ir.Shape(int(size) if size.isdigit() else size for size in tensor.shape)
        graph.outputs.append(value)
    passes.RemoveUnusedNodesPass()(program)
    passes.RemoveUnusedOpsetsPass()(program)
    passes.NameFixPass()(program)  # inputs and outputs keep theirs
    program.producer_name, program.producer_version = "onnxpress", None


def _tensors(program: onnx_ir.Model) -> Iterator[onnx_ir.TensorProtocol]:
    for graph in (program.graph, *program.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _is_layer_norm(node: onnx_ir.Node) -> bool:
    return bool(node.op_type == "LayerNormalization" and node.domain == "")


def _constant(graph: onnx_ir.Graph, name: str, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
    """A new initializer; two outputs may ask for the same."""
    if name not in graph.initializers:
        tensor.name = name
        kind = onnx_ir.TensorType(tensor.dtype)
        graph.register_initializer(
            onnx_ir.Value(name=name, const_value=tensor, type=kind, shape=onnx_ir.Shape(tensor.shape))
        )
    return graph.initializers[name]


def _value(name: str, dtype: onnx_ir.DataType) -> onnx_ir.Value:
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype))


def _replace(graph: onnx_ir.Graph, value: onnx_ir.Value, node: onnx_ir.Node, after: onnx_ir.Node | None = None) -> None:
    """Let what reads `value` read the first output of a new node, which goes first into the graph, or after another."""
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    value.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    value.name = f"{value.name}_given"
    if after is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(after, node)


def _vocabulary_product(logits: onnx_ir.Value) -> onnx_ir.Node | None:
    """The MatMul of hidden states [b, s, h] with a constant [h, v], and perhaps an added [v], that logits come from."""
    node = logits.producer()
    if node is None or logits.uses():
        return None
    if node.op_type == "Add":
        added = [value for value in node.inputs if value is not None and _rank_of_constant(value) == 1]
        others = [value for value in node.inputs if value not in added]
        if len(others) != 1 or others[0] is None or len(others[0].uses()) != 1 or others[0].is_graph_output():
            return None
        node = others[0].producer()
    if node is None or node.op_type != "MatMul" or node.inputs[1] is None:
        return None
    weight = node.inputs[1]
    turned = weight.producer()
    if turned is not None and turned.op_type == "Transpose" and turned.inputs[0] is not None:
        weight = turned.inputs[0]
    return node if _rank_of_constant(weight) == 2 else None


def _rank_of_constant(value: onnx_ir.Value) -> int | None:
    return None if value.const_value is None else len(value.const_value.shape)


def _rename_axes(program: onnx_ir.Model, inputs: Sequence[Tensor]) -> None:
    """Give the sizes that the inputs' axes are named by in the graph our names, wherever they occur."""
    ours = {tensor.name: tensor.shape for tensor in inputs}
    names: dict[str, set[str]] = {}
    for value in program.graph.inputs:
        for dim, name in zip(value.shape or (), ours.get(str(value.name), ()), strict=False):
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value:
                names.setdefault(dim.value, set()).add(name)
    alike = any(len(found) > 1 for found in names.values())  # one name for two sizes says nothing
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names) or r"(?!)")
    for node in program.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None:
                value.shape = None if alike else onnx_ir.Shape(
                    pattern.sub(lambda match: next(iter(names[match.group()])), dim.value)
                    if isinstance(dim, onnx_ir.SymbolicDim) and dim.value is not None
                    else dim
                    for dim in value.shape
                )  # fmt: skip
