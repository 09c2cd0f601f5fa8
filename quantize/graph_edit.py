"""Changes to a float32 graph around its matrix products, applied so that nodes stay in topological order.

What is changed, and why, is decided in outliers.py and migration.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from onnxpress.quantize.activations import FloatArray, is_transposed
from onnxpress.quantize.graphs import replace_messages


class GraphEdit:
    """Collects changes to a graph; `finish` applies them.

    Args:
        model: its weights in memory.
        prefix: what names of new nodes begin with.
    """

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        self._graph = model.graph
        self._prefix = prefix
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._after: dict[str, list[onnx.NodeProto]] = {}  # new nodes, by the value they follow

    def weight(self, node: onnx.NodeProto) -> FloatArray:
        """The product's weight [K, N]."""
        array: FloatArray = numpy_helper.to_array(self._tensors[node.input[1]])
        return array.T if is_transposed(node) else array

    def smooth(self, products: Mapping[str, Sequence[onnx.NodeProto]], scale: FloatArray) -> None:
        """x W -> (x * (1 / s)) (s W).

        Args:
            products: by activation; a weight that several of them read stays one.
            scale: s, float32 [K].
        """
        factors = f"{next(iter(products))}_smooth_factors"
        # Not "..._scale": quantize_dynamic gives that name to the scale it computes for an activation.
        self.constant(factors, (1.0 / scale).astype(np.float32))
        for activation, nodes in products.items():
            self.insert(activation, "Mul", [activation, factors], f"{activation}_smooth")
            for node in nodes:
                scaled = f"{node.input[1]}_{factors}"
                if scaled not in self._tensors:
                    weight = self.weight(node) * scale[:, None]
                    self.constant(scaled, np.ascontiguousarray(weight.T if is_transposed(node) else weight))
                node.input[0], node.input[1] = f"{activation}_smooth", scaled

    def constant(self, name: str, value: npt.NDArray[Any]) -> None:
        """Add a weight."""
        tensor = numpy_helper.from_array(value, name)
        self._tensors[name] = tensor
        self._graph.initializer.append(tensor)

    def insert(self, after: str, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node behind the value `after` and return its name, by which quantizers are told what to leave alone."""
        name = f"{self._prefix}_{op_type}_{output}"
        node = helper.make_node(op_type, inputs, [output], name=name, **attributes)
        self._after.setdefault(after, []).append(node)
        return name

    def finish(self) -> None:
        """Put the new nodes in their places and drop weights nothing reads any more."""
        ordered = [new for tensor in self._graph.input for new in self._after.pop(tensor.name, [])]
        for node in self._graph.node:
            ordered.append(node)
            for output in node.output:
                ordered += self._after.pop(output, [])
        replace_messages(self._graph.node, ordered)
        used = {name for node in ordered for name in node.input}
        replace_messages(self._graph.initializer, [tensor for tensor in self._graph.initializer if tensor.name in used])
