"""Puts nodes that read weights in blocks where float32 ones were, and writes the graph.

Matrix products become com.microsoft::MatMulNBits, lookups of token embeddings GatherBlockQuantized, mixtures of experts
QMoE. The first two lay out the same bytes under other dimensions, [N, B, bytes of a block] and [N, bytes of a row]: a
weight that both read is two tensors at one place of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from onnxpress.quantize.graphs import drop_initializer_shapes, replace_messages, save_graph
from onnxpress.quantize.products import Weight
from onnxpress.quantize.rounding import FloatArray, Rounded

_DOMAIN = "com.microsoft"


class BlockNodes:
    """Changes a graph, weight by weight.

    Args:
        model: its weights not in memory.
        folder: where its weights lie.
        accuracy_level: of matrix products.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, accuracy_level: int) -> None:
        drop_initializer_shapes(model)
        self._model = model
        self._graph = model.graph
        self._folder = folder
        self._accuracy_level = accuracy_level
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._added: dict[str, onnx.TensorProto] = {}
        self._new: dict[str, list[onnx.NodeProto]] = {}  # what stands in place of a node, by its first output
        self._views: dict[str, tuple[str, list[int]]] = {}  # tensors that are another one under these dimensions

    def sizes(self, name: str) -> list[int]:
        """Of a weight."""
        return list(self._tensors[name].dims)

    def read(self, name: str) -> FloatArray:
        """A weight's values."""
        tensor = TensorProto()
        tensor.CopyFrom(self._tensors[name])  # reading would keep the values in the graph
        values: FloatArray = numpy_helper.to_array(tensor, str(self._folder))
        return values

    def readers(self, name: str) -> int:
        """How many nodes of the original graph read a weight."""
        return sum(name in node.input for node in self._graph.node)

    def replace_products(self, weight: Weight, rounded: Rounded) -> None:
        """Let products multiply by the rounded weight."""
        shape = rounded.codes.shape[:2]
        names = self._store(weight.stored_as, rounded, shape, shape[:1])
        for product in weight.products:
            node, bias = product.node, product.bias
            result = f"{node.output[0]}_product" if bias else node.output[0]
            made = [
                self._node(
                    node,
                    "MatMulNBits",
                    [node.input[0], *names],
                    result,
                    **_format(rounded),
                    K=weight.inputs,
                    N=weight.outputs,
                    accuracy_level=self._accuracy_level,
                )
            ]
            if bias:
                made.append(helper.make_node("Add", [result, bias], node.output, name=f"{node.name}_bias"))
            self._new[node.output[0]] = made

    def replace_lookups(self, weight: Weight, rounded: Rounded) -> None:
        """Let lookups take rows of the rounded weight, of the same bytes that products read where there are any."""
        outputs, count, block_size = rounded.codes.shape
        if weight.products:
            codes, scales, zeros = self._store(weight.stored_as, rounded, (outputs, count), (outputs,))
            rows = f"{codes}.rows"
            self._views[rows] = codes, [outputs, count * block_size * rounded.bits // 8]
        else:
            rows, scales, zeros = self._store(weight.stored_as, rounded, (outputs,), (outputs,))
        filled_up = count * block_size > weight.inputs
        for node in weight.lookups:
            result = f"{node.output[0]}_filled_up" if filled_up else node.output[0]
            inputs = [rows, node.input[1], scales, zeros]
            axes = {"gather_axis": 0, "quantize_axis": 1}
            made = [self._node(node, "GatherBlockQuantized", inputs, result, **_format(rounded), **axes)]
            if filled_up:
                bounds = [self._constant(f"{rows}.{value}", np.array([value])) for value in (0, weight.inputs, -1)]
                made.append(helper.make_node("Slice", [result, *bounds], node.output, name=f"{node.name}_cut"))
            self._new[node.output[0]] = made

    def replace_experts(self, node: onnx.NodeProto, gate_up: Rounded, down: Rounded) -> None:
        """MoE to QMoE. The rounded weights are [experts * N, K] each."""
        inputs, all_zeros = list(node.input[:2]), []
        for place, rounded in ((2, gate_up), (4, down)):
            rows = tuple(self.sizes(node.input[place])[:2])
            codes, scales, zeros = self._store(node.input[place], rounded, rows, rows)
            inputs += [codes, scales, node.input[place + 1] if place + 1 < len(node.input) else ""]
            all_zeros.append(zeros)
        inputs += ["", "", "", *all_zeros]  # no third matrix
        block = {"expert_weight_bits": gate_up.bits, "block_size": gate_up.codes.shape[2]}
        made = self._node(node, "QMoE", inputs, node.output[0], **block, quant_type="int")
        made.attribute.extend(node.attribute)
        self._new[node.output[0]] = [made]

    def _node(
        self, old: onnx.NodeProto, op_type: str, inputs: list[str], result: str, **attributes: Any
    ) -> onnx.NodeProto:
        while not inputs[-1]:
            inputs.pop()
        return helper.make_node(op_type, inputs, [result], name=old.name, domain=_DOMAIN, **attributes)

    def _store(
        self, name: str, rounded: Rounded, codes_shape: tuple[int, ...], rows: tuple[int, ...]
    ) -> tuple[str, str, str]:
        """Names of the codes [*codes_shape, ...], and of scales and zero points [*rows, ...]; "" for no zero points."""
        names = f"{name}.int{rounded.bits}", f"{name}.scales", "" if rounded.symmetric else f"{name}.zero_points"
        if names[0] not in self._added:
            self._constant(names[0], rounded.packed_codes().reshape(*codes_shape, -1))
            self._constant(names[1], rounded.scales.reshape(*rows, -1))
            if names[2]:
                self._constant(names[2], rounded.packed_zeros().reshape(*rows, -1))
        return names

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self._added[name] = numpy_helper.from_array(values, name)
        return name

    def save(self, target: Path) -> None:
        """Put the new nodes in their places, drop what nothing reads any more, and write."""
        graph = self._graph
        nodes = [new for old in graph.node for new in self._new.get(old.output[0], [old])]
        read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
        # A product read its weight through one of these.
        nodes = [node for node in nodes if node.op_type != "Transpose" or read.intersection(node.output)]
        read = {name for node in nodes for name in node.input}
        written = {name for node in nodes for name in node.output}
        replace_messages(graph.value_info, [info for info in graph.value_info if info.name in written])
        replace_messages(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
        replace_messages(graph.node, nodes)
        graph.initializer.extend(self._added.values())
        self._added.clear()
        if all(entry.domain != _DOMAIN for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        load_external_data_for_model(self._model, str(self._folder))
        save_graph(self._model, target)
        if self._views:
            self._write_views(target)

    def _write_views(self, target: Path) -> None:
        """Add the tensors that lie in the file where others do. save_graph, like onnx, would write them once more."""
        tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        for name, (other, sizes) in self._views.items():
            view = self._graph.initializer.add()
            view.CopyFrom(tensors[other])
            view.name = name
            del view.dims[:]
            view.dims.extend(sizes)
        target.write_bytes(self._model.SerializeToString())


def _format(rounded: Rounded) -> dict[str, int]:
    return {"bits": rounded.bits, "block_size": rounded.codes.shape[2]}
