"""Finds the weights of a graph that can be stored in blocks: those of matrix products, token embeddings and experts.

Only looks; weight_only.py changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto, helper

_SELECTING = ("Gather", "GatherND", "Squeeze", "Unsqueeze", "Identity")
"""Operators that take some tokens of an activation, or lay it out anew, and leave its channels as they are."""
_RESHAPING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_SCORING = ("Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Sigmoid", "Softmax", "Softplus", "Sqrt")
"""Operators between a router's product and the choice of the experts."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A node x W or x W^T, plus a bias where it is a Gemm."""

    node: onnx.NodeProto
    activation: str
    """x, before tokens were selected from it: what calibration looks at."""
    bias: str = ""


@dataclasses.dataclass
class Weight:
    """A matrix W^T [outputs, inputs] and what reads it."""

    name: str
    """Of the initializer."""
    outputs: int
    inputs: int
    by_output: bool
    """Stored as [outputs, inputs], as a token embedding and a product through a Transpose have it; else transposed."""
    stored_as: str
    """What to call it in blocks; differs from the name where a graph has a matrix both ways."""
    products: list[Product] = dataclasses.field(default_factory=list)
    lookups: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    """Gather nodes that take rows for token ids."""
    is_last: bool = False
    """It belongs to the last product of the graph, the language model head of a decoder."""


@dataclasses.dataclass
class Found:
    """What a graph has."""

    weights: list[Weight] = dataclasses.field(default_factory=list)
    experts: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    """MoE nodes of com.microsoft."""
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why a node with a weight keeps it, by the name of the node."""


def find_weights(model: onnx.ModelProto, exclude: Iterable[str] = ()) -> Found:
    """Look through the main graph.

    Args:
        model: its weights need not be in memory.
        exclude: names of nodes, or of weights, to leave.
    """
    search = _Search(model, set(exclude))
    for node in model.graph.node:
        search.visit(node)
    return search.finish()


class _Search:
    def __init__(self, model: onnx.ModelProto, exclude: set[str]) -> None:
        self._graph = model.graph
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._routers = set(self._find_routers())
        self._exclude = exclude
        self._weights: dict[tuple[str, bool], Weight] = {}
        self._found = Found()

    def visit(self, node: onnx.NodeProto) -> None:
        if node.op_type == "MatMul":
            self._product(node, False)
        elif node.op_type == "Gemm":
            settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            if settings.get("alpha", 1) == settings.get("beta", 1) == 1 and not settings.get("transA"):
                self._product(node, bool(settings.get("transB")))
        elif node.op_type == "Gather":
            self._lookup(node)
        elif node.op_type == "MoE" and not self._leave(node, [node.input[2], node.input[4]], rank=3):
            self._found.experts.append(node)

    def finish(self) -> Found:
        self._found.weights = list(self._weights.values())
        order = {node.output[0]: index for index, node in enumerate(self._graph.node)}
        places = {
            order[product.node.output[0]]: weight for weight in self._found.weights for product in weight.products
        }
        if places:
            places[max(places)].is_last = True
        return self._found

    def _product(self, node: onnx.NodeProto, by_output: bool) -> None:
        name = node.input[1]
        transpose = self._producers.get(name)
        if transpose is not None and transpose.op_type == "Transpose":
            order = [list(attribute.ints) for attribute in transpose.attribute if attribute.name == "perm"]
            if order in ([], [[1, 0]]):
                name, by_output = transpose.input[0], not by_output
        if name in self._tensors and not self._leave(node, [name], rank=2):
            bias = node.input[2] if len(node.input) > 2 else ""
            self._weight(name, by_output).products.append(Product(node, self._all_tokens(node.input[0]), bias))

    def _lookup(self, node: onnx.NodeProto) -> None:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        table = self._tensors.get(node.input[0])
        if table is None or len(table.dims) != 2 or axis != 0 or self._origin(node.input[1]) != "input_ids":
            return  # positions, and choices among sizes
        if not self._leave(node, [table.name], rank=2):
            self._weight(table.name, by_output=True).lookups.append(node)

    def _weight(self, name: str, by_output: bool) -> Weight:
        rows, columns = self._tensors[name].dims
        outputs, inputs = (rows, columns) if by_output else (columns, rows)
        stored_as = f"{name}.transposed" if (name, not by_output) in self._weights else name
        return self._weights.setdefault((name, by_output), Weight(name, outputs, inputs, by_output, stored_as))

    def _leave(self, node: onnx.NodeProto, names: list[str], rank: int) -> bool:
        """Note why a node keeps its weights; False if it does not."""
        tensors = [self._tensors.get(name) for name in names]
        reason = ""
        if self._exclude.intersection([node.name, *names]):
            reason = "excluded"
        elif node.output[0] in self._routers:
            reason = "chooses the experts"
        elif any(tensor is None for tensor in tensors):
            reason = "its weights are computed"
        elif odd := next((tensor for tensor in tensors if tensor and len(tensor.dims) != rank), None):
            reason = f"its weight has {len(odd.dims)} dimensions"
        elif odd := next((tensor for tensor in tensors if tensor and tensor.data_type != TensorProto.FLOAT), None):
            reason = f"its weight is {TensorProto.DataType.Name(odd.data_type).lower()}"
        if reason:
            self._found.left[node.name or node.output[0]] = reason
        return bool(reason)

    def _origin(self, name: str) -> str:
        """The value that `name` is, but for its type and shape."""
        while (node := self._producers.get(name)) is not None and node.op_type in _RESHAPING:
            name = node.input[0]
        return name

    def _all_tokens(self, name: str) -> str:
        """The activation that `name` takes tokens from: only the last token of each row reaches the head."""
        while (node := self._producers.get(name)) is not None and node.op_type in _SELECTING:
            if node.input[0] in self._tensors:
                break
            name = node.input[0]
        return name

    def _find_routers(self) -> Iterator[str]:
        """Results of products that only choose experts: a few columns, and an error in them changes the choice."""
        waiting = [node.input[0] for node in self._graph.node if node.op_type == "TopK"]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            node = self._producers.get(name)
            if name in seen or node is None:
                continue
            seen.add(name)
            if node.op_type in ("MatMul", "Gemm"):
                yield name
            elif node.op_type in _SCORING:
                waiting.extend(node.input)
