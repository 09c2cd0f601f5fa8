"""A decoder in PyTorch to one ONNX graph, as torch.export and torch.onnx see it, with names and sizes as promised.

torch.onnx first rewrites the traced program with hundreds of decompositions, which traces it again and takes longer
than all the rest. Where the program consists of operators that have an ONNX form, that is left out: what remains to be
done is to drop casts that cast to the type they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from onnxpress.exporter.decoder.forward import Layer, Trace, call
from onnxpress.exporter.decoder.rotary import OPSET
from onnxpress.exporter.graph_names import clean_metadata, rename_axes

__all__ = ["convert"]

_BATCH, _SEQUENCE, _POSITIONS, _MAX_LENGTH = 2, 5, 3, 16
"""Sizes a decoder is traced with: all different, none of them 1, which torch.export takes as fixed."""
_WRAPPED = "model."
"""What `_Decoder` puts before the names of the model's own modules."""
_CASTS = ("aten.to.", "aten._to_copy.", "aten.type_as.")
_SAME = ("aten.contiguous.", "aten.detach.", "aten.detach_.", "aten.alias.", "aten.lift_fresh_copy.", "aten.clone.")


class _Decoder(nn.Module):
    """The decoder as a function of tensors alone."""

    def __init__(self, model: Any, layers: Sequence[Layer], cache_argument: str) -> None:
        super().__init__()
        self.model = model
        self._layers = tuple(layers)
        self._cache_argument = cache_argument

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        logit_index: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, positions, vocabulary] and the present keys and values, in the order of the past ones."""
        trace = Trace(list(zip(past[::2], past[1::2], strict=True)), self._layers, (seqlens_k, total_sequence_length))
        trace.shared["logit_index"] = logit_index
        with call(trace):
            logits = self.model(
                input_ids=input_ids, position_ids=position_ids, use_cache=True, **{self._cache_argument: trace.cache}
            ).logits
        present = [states for index in range(len(self._layers)) for states in trace.present[index]]
        return logits, present


def convert(model: Any, layers: Sequence[Layer], vocabulary: int, cache_argument: str) -> onnx_ir.Model:
    """Trace a model whose parts are replaced, and convert it.

    Args:
        model: computes logits [batch, positions, vocabulary] of the tokens at `logit_index`.
        layers: as observed.
        vocabulary: token ids are below it.
        cache_argument: what the model's forward calls its cache.
    """
    inputs, shapes = _inputs(layers, vocabulary)
    with torch.no_grad():
        program = torch.export.export(
            _Decoder(model, layers, cache_argument), inputs, dynamic_shapes=shapes, strict=False
        )
    parts = [f"{index}.{kind}" for index in range(len(layers)) for kind in ("key", "value")]
    names = ("input_ids", "position_ids", "logit_index", "seqlens_k", "total_sequence_length")

    def to_onnx() -> Any:
        return torch.onnx.export(
            program,
            input_names=[*names, *(f"past.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )

    # Found on the object before it is found on its class: this is what torch.onnx calls.
    program.run_decompositions = lambda table: _decompose(program, table)
    try:
        converted = to_onnx()
    except torch.onnx.OnnxExporterError:
        del program.run_decompositions
        converted = to_onnx()
    graph: onnx_ir.Model = converted.model
    rename_axes(graph, _axis_names(graph))
    _name_weights(graph)
    clean_metadata(graph, _WRAPPED)
    return graph


def _inputs(layers: Sequence[Layer], vocabulary: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs to trace with, and which of their sizes are free."""
    generator = torch.Generator().manual_seed(0)
    past = [
        torch.zeros(_BATCH, layer.kv_heads, _MAX_LENGTH, layer.head_dim) for layer in layers for _ in ("key", "value")
    ]
    inputs = (
        torch.randint(vocabulary, (_BATCH, _SEQUENCE), generator=generator),
        torch.arange(_SEQUENCE).repeat(_BATCH, 1),
        torch.arange(_POSITIONS).repeat(_BATCH, 1),
        torch.full((_BATCH,), _SEQUENCE - 1, dtype=torch.int32),
        torch.tensor([_SEQUENCE], dtype=torch.int32),
        past,
    )
    free = ("batch", "sequence", "positions", "max_length")
    batch, sequence, positions, max_length = (torch.export.Dim(name) for name in free)
    tokens = {0: batch, 1: sequence}
    return inputs, (tokens, tokens, {0: batch, 1: positions}, {0: batch}, None, [{0: batch, 2: max_length}] * len(past))


def _decompose(program: Any, table: Mapping[Any, Any]) -> Any:
    """In place of ExportedProgram.run_decompositions: as little as will do."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_function" or not isinstance(source, torch.fx.Node):
            continue
        if any(user.op == "output" for user in node.users):  # the program knows its outputs by name
            continue
        equal = _equal(graph, node, source)
        if equal is not None:
            node.replace_all_uses_with(equal)
            graph.erase_node(node)
    if all(_has_onnx_form(node, table) for node in graph.nodes):
        return program
    return torch.export.ExportedProgram.run_decompositions(program, table)


def _equal(graph: Any, node: Any, source: Any) -> Any:
    """A node that computes the same and has an ONNX form, if one is known. `source`: the first that `node` reads."""
    aten = torch.ops.aten
    name = str(node.target)
    args: tuple[Any, ...]
    if name.startswith(_SAME) or (name.startswith(_CASTS) and _dtype(node) == _dtype(source)):
        return source
    if name.startswith(_CASTS):
        target, args, kwargs = aten._to_copy.default, (source,), {"dtype": _dtype(node)}
    elif node.target == aten.square.default:
        target, args, kwargs = aten.mul.Tensor, (source, source), {}
    elif node.target == aten.item.default:
        target, args, kwargs = aten._local_scalar_dense.default, (source,), {}
    elif node.target == aten.numpy_T.default:
        target, args, kwargs = aten.permute.default, (source, list(reversed(range(source.meta["val"].ndim)))), {}
    elif node.target in (aten.min.other, aten.max.other):
        target = aten.minimum.default if node.target == aten.min.other else aten.maximum.default
        args, kwargs = node.args, {}
    else:
        return None
    with graph.inserting_before(node):
        equal = graph.call_function(target, args, kwargs)
    equal.meta = node.meta
    return equal


def _dtype(node: Any) -> Any:
    return getattr(node.meta.get("val"), "dtype", None)


def _has_onnx_form(node: Any, table: Mapping[Any, Any]) -> bool:
    """Whether torch.onnx takes a node as it is. `table`: what it would decompose."""
    if node.op == "get_attr":  # a graph of its own, of a block with gradients switched off, for one
        return False
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return True
    return "_assert_" in node.name or (node.target not in table and not node.target._schema.is_mutable)


def _axis_names(graph: onnx_ir.Model) -> dict[str, str]:
    """What the axes that torch calls s18, s41 are."""
    shapes = {value.name: value.shape for value in graph.graph.inputs}
    return {
        str(shapes["input_ids"][0].value): "batch",
        str(shapes["input_ids"][1].value): "sequence",
        str(shapes["logit_index"][1].value): "positions",
        str(shapes["past.0.key"][2].value): "max_length",
    }


def _name_weights(graph: onnx_ir.Model) -> None:
    """Give weights the names they have in the model."""
    for value in list(graph.graph.initializers.values()):
        value.name = value.name.removeprefix(_WRAPPED)
