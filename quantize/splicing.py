"""Takes the quantized form of single nodes out of a quantized graph, to put it into the float32 graph it was made of.

Passes keep the names of the float32 graph's values: its inputs, and what each of its nodes computes. So the quantized
form of one node is the backward slice of the quantized graph from the node's result to values that the float32 graph
has too. What a slice needs beside these - weights, scales, values on the way - is brought along under names that end in
the precision, so that slices of several graphs live side by side, and nodes of one precision share what they shared:
an activation that several products read is quantized once.

Only cuts and joins; quantize/mixed.py decides which node gets which form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from onnxpress.quantize.graphs import needed_nodes, reads, replace_messages, save_graph
from onnxpress.runtime.errors import UnsupportedModelError

FP16 = "fp16"
"""The precision whose form of a node is made here: passes for half precision change the type of every value, so that
there is no slice to take."""
_WEIGHTED = {"MatMul": (1,), "Gemm": (1,), "Gather": (0,), "MoE": (2, 4)}
"""Operators whose weights can be of few bits, and which inputs these are."""


@dataclasses.dataclass(frozen=True)
class Part:
    """An ONNX file, its weights not in memory."""

    model: onnx.ModelProto
    folder: Path
    """Where its weights lie."""
    tensors: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]

    @property
    def inputs(self) -> set[str]:
        """Names of the graph's inputs."""
        return {value.name for value in self.model.graph.input}

    def load(self, name: str) -> TensorProto:
        """A copy of a weight, its values in memory."""
        tensor = TensorProto()
        tensor.CopyFrom(self.tensors[name])
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(self.folder))
        return tensor

    def place(self, name: str) -> tuple[str, int, int] | None:
        """File, offset and length of a weight that lies beside the graph."""
        tensor = self.tensors[name]
        if not uses_external_data(tensor):
            return None
        info = ExternalDataInfo(tensor)
        return str(self.folder / info.location), info.offset or 0, info.length or 0

    def size_bytes(self, name: str) -> int:
        """Bytes of a weight's values."""
        place = self.place(name)
        return place[2] if place else len(numpy_helper.to_array(self.tensors[name]).tobytes())


def open_part(path: Path) -> Part:
    """Read an ONNX file; weights stay on disk."""
    model = onnx.load(str(path), load_external_data=False)
    return Part(
        model,
        path.parent,
        {tensor.name: tensor for tensor in model.graph.initializer},
        {name: node for node in model.graph.node for name in node.output if name},
    )


def weighted_nodes(base: Part) -> dict[str, NodeProto]:
    """Nodes with weights that could be of few bits, by their names, in graph order. A node without a name, or with one
    that an earlier node has, goes by that of its result."""
    found: dict[str, NodeProto] = {}
    for node in base.model.graph.node:
        if weights_of(base, node):
            found[node.name if node.name and node.name not in found else node.output[0]] = node
    return found


def weights_of(base: Part, node: NodeProto) -> list[str]:
    """Names of a node's float32 weights of two or more dimensions, also of such that it reads through a Transpose."""
    if node.domain not in ("", "com.microsoft"):
        return []
    names = []
    for place in _WEIGHTED.get(node.op_type, ()):
        name = node.input[place]
        producer = base.producers.get(name)
        if producer is not None and producer.op_type == "Transpose":
            name = producer.input[0]
        tensor = base.tensors.get(name)
        if tensor is not None and len(tensor.dims) >= 2 and tensor.data_type == TensorProto.FLOAT:
            names.append(name)
    return names


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to compute a node's result."""

    nodes: tuple[NodeProto, ...]
    """In topological order; the last one computes the result."""
    weights: tuple[tuple[str, str], ...]
    """Weights that the float32 graph does not have: their names in the graph they come from, and in `nodes`."""
    opsets: tuple[tuple[str, int], ...]

    @property
    def inner(self) -> set[str]:
        """Names of the values on the way to the result, which is not one of them."""
        names = {name for node in self.nodes for name in node.output if name}
        return names - {self.nodes[-1].output[0]}


class Splicer:
    """Finds the forms that the nodes of a float32 graph have in graphs that were made from it."""

    def __init__(self, base: Part) -> None:
        self.base = base
        self.nodes = weighted_nodes(base)
        self._known = base.inputs | set(base.tensors) | set(base.producers)

    def quantized_nodes(self, part: Part) -> list[str]:
        """Names of the nodes that the part computes in another way than the float32 graph, in graph order."""
        return [name for name in self.nodes if self.form(name, part, "") is not None]

    def form(self, name: str, part: Part, suffix: str) -> Form | None:
        """The part's form of a node; None where it is the float32 one, or the part does not have the result.

        Args:
            name: of the node.
            part: a graph that was made from the float32 graph.
            suffix: what names that the float32 graph does not have get appended.

        Raises:
            UnsupportedModelError: the part computes the node from inputs that the float32 graph does not have.
        """
        node = self.nodes[name]
        result = node.output[0]
        if result not in part.producers:
            return None
        slice_, weights = self._slice(part, result)
        if not weights and [_without_name(one) for one in slice_] == [_without_name(node)]:
            return None
        renamed = {inner: f"{inner}{suffix}" for one in slice_ for inner in one.output if inner and inner != result}
        renamed |= {weight: f"{weight}{suffix}" for weight in weights}
        return Form(
            tuple(_renamed(one, renamed, suffix) for one in slice_),
            tuple((weight, renamed[weight]) for weight in weights),
            tuple((entry.domain, entry.version) for entry in part.model.opset_import),
        )

    def _slice(self, part: Part, result: str) -> tuple[list[NodeProto], list[str]]:
        """Nodes that compute `result`, in topological order, and the weights among what they read that are not the
        float32 graph's."""
        nodes: list[NodeProto] = []
        weights: dict[str, None] = {}
        seen: set[int] = set()

        def visit(name: str) -> None:
            if name in part.tensors:
                if not self._same_weight(part, name):
                    weights[name] = None
                return
            if name in self._known and name != result:
                return
            producer = part.producers.get(name)
            if producer is None:
                raise UnsupportedModelError(
                    f"the quantized graph reads the input {name!r}, which the float32 graph lacks"
                )
            if id(producer) in seen:
                return
            seen.add(id(producer))
            for read in reads(producer):
                visit(read)
            nodes.append(producer)

        visit(result)
        return nodes, list(weights)

    def _same_weight(self, part: Part, name: str) -> bool:
        """Whether a part's weight is the float32 graph's weight of the same name."""
        own, other = self.base.tensors.get(name), part.tensors[name]
        if own is None or own.data_type != other.data_type or list(own.dims) != list(other.dims):
            return False
        return np.array_equal(numpy_helper.to_array(self.base.load(name)), numpy_helper.to_array(part.load(name)))


def half_form(base: Part, node: NodeProto, suffix: str) -> tuple[Form, list[TensorProto]]:
    """A node with weights in float16, between casts of what it reads and gives; and its weights."""
    nodes, tensors, inputs = [], [], []
    for name in node.input:
        renamed = f"{name}{suffix}"
        if name in base.tensors and base.tensors[name].data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(base.load(name)).astype(np.float16)
            tensors.append(numpy_helper.from_array(values, renamed))
        elif name and (name in base.producers or name in base.inputs) and _is_value(node, name):
            nodes.append(helper.make_node("Cast", [name], [renamed], name=f"{renamed}_cast", to=TensorProto.FLOAT16))
        else:
            renamed = name
        inputs.append(renamed)
    half = NodeProto()
    half.CopyFrom(node)
    half.input[:] = inputs
    half.output[:] = [f"{node.output[0]}{suffix}"]
    half.name = f"{node.name or node.output[0]}{suffix}"
    nodes += [half, helper.make_node("Cast", half.output, [node.output[0]], name=f"{half.name}_float", to=1)]
    return Form(tuple(nodes), (), ()), tensors


def _is_value(node: NodeProto, name: str) -> bool:
    """Whether an input of a node is a float value, not the indices of a Gather."""
    return not (node.op_type == "Gather" and list(node.input).index(name) == 1)


def _renamed(node: NodeProto, names: Mapping[str, str], suffix: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    if node.name:
        copy.name = f"{node.name}{suffix}"
    return copy


def _without_name(node: NodeProto) -> bytes:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = copy.doc_string = ""
    del copy.metadata_props[:]
    serialized: bytes = copy.SerializeToString()
    return serialized


class Assembly:
    """A graph on its way from the float32 one: nodes are replaced, weights brought along, then it is written."""

    def __init__(self, base: Part) -> None:
        self.base = base
        self.model = onnx.ModelProto()
        self.model.CopyFrom(base.model)
        del self.model.graph.initializer[:]
        self._added: dict[str, tuple[Part, str] | TensorProto] = {}

    def add_weights(self, part: Part, form: Form) -> None:
        """Bring along what a form reads."""
        for name, renamed in form.weights:
            self._added.setdefault(renamed, (part, name))
        self.require_opsets(form.opsets)

    def add_tensor(self, tensor: TensorProto) -> None:
        """Bring a weight along whose values are in memory."""
        self._added.setdefault(tensor.name, tensor)

    def require_opsets(self, opsets: Iterable[tuple[str, int]]) -> None:
        """See that the graph knows the operators of a form.

        Raises:
            UnsupportedModelError: the form is of another version of the standard than the graph.
        """
        own = {entry.domain: entry.version for entry in self.model.opset_import}
        for domain, version in opsets:
            if own.setdefault(domain, version) != version:
                raise UnsupportedModelError(
                    f"graphs of operator set {own[domain]} and {version} of {domain or 'ONNX'} cannot be mixed"
                )
            if all(entry.domain != domain for entry in self.model.opset_import):
                self.model.opset_import.append(helper.make_opsetid(domain, version))

    def set_nodes(self, nodes: Iterable[NodeProto]) -> None:
        """Make these the nodes, in an order that runs, without those that nothing needs and whose names double."""
        kept = needed_nodes(_topological(list(nodes)), [value.name for value in self.model.graph.output])
        copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
        taken: set[str] = set()
        for node in copies:
            if node.name in taken:
                node.name = f"{node.name}.{node.output[0]}"
            taken.add(node.name)
        replace_messages(self.model.graph.node, copies)

    def save(self, target: Path) -> None:
        """Write the graph with the weights that its nodes read; what lay at one place of a file still does."""
        graph = self.model.graph
        wanted = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
        written = {name for node in graph.node for name in node.output}
        # value_info of other values, and of weights, would contradict what is there now; onnxruntime trusts it.
        replace_messages(graph.value_info, [info for info in graph.value_info if info.name in written])
        first: dict[tuple[str, int, int], str] = {}
        views: dict[str, tuple[str, TensorProto]] = {}
        for name, (part, original) in self._sources(wanted).items():
            place = part.place(original)
            if place is not None and place in first:
                views[name] = first[place], part.tensors[original]
                continue
            if place is not None:
                first[place] = name
            tensor = part.load(original)
            tensor.name = name
            graph.initializer.append(tensor)
        graph.initializer.extend(
            tensor for name, tensor in self._added.items() if isinstance(tensor, TensorProto) and name in wanted
        )
        save_graph(self.model, target)
        if views:
            self._write_views(views, target)

    def _sources(self, wanted: set[str]) -> dict[str, tuple[Part, str]]:
        """Where the values of each weight are, by its name in the graph."""
        own = {name: (self.base, name) for name in self.base.tensors if name in wanted}
        added = {name: source for name, source in self._added.items() if isinstance(source, tuple) and name in wanted}
        return own | added

    def _write_views(self, views: Mapping[str, tuple[str, TensorProto]], target: Path) -> None:
        tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for name, (other, original) in views.items():
            view = self.model.graph.initializer.add()
            view.CopyFrom(tensors[other])
            view.name, view.data_type = name, original.data_type
            del view.dims[:]
            view.dims.extend(original.dims)
        target.write_bytes(self.model.SerializeToString())


def _topological(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes, each after those it reads from, otherwise in the order given."""
    producers = {name: node for node in nodes for name in node.output if name}
    ordered: list[NodeProto] = []
    seen: set[int] = set()
    for node in nodes:
        waiting = [node]
        while waiting:
            top = waiting[-1]
            if id(top) in seen:
                waiting.pop()
                continue
            before = [producers[name] for name in reads(top) if name in producers]
            before = [one for one in before if id(one) not in seen]
            if before:
                waiting += before
            else:
                seen.add(id(top))
                ordered.append(top)
                waiting.pop()
    return ordered
