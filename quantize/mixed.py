"""Mixed precision: every node of a float32 graph with weights gets the form that one of several quantized graphs has.

Also one graph in which each node has both forms, float32 and quantized, and an input says which one runs: the error of
any mixture is then known without writing it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxpress.quantize.graphs import PassReport, count_ops
from onnxpress.quantize.splicing import FP16, Assembly, Form, Part, Splicer, half_form, open_part
from onnxpress.runtime.errors import UnsupportedModelError

FLOAT32 = "fp32"
SWITCHES = "onnxpress.switches"
"""Input of a switchable graph: bool [nodes], True where a node runs in its quantized form."""


@dataclasses.dataclass(frozen=True)
class MixedConfig:
    """Which node gets which form."""

    assignment: Mapping[str, str]
    """Names of nodes (`splicing.weighted_nodes`) to precisions: keys of the parts, "fp16", or "fp32". Nodes that are
    not mentioned stay float32."""


def mix_precisions(base: Path, parts: Mapping[str, Path], config: MixedConfig, target: Path) -> PassReport:
    """Write the float32 graph with some of its nodes in the forms they have in other graphs.

    Args:
        base: the float32 graph.
        parts: graphs that were made from it, by precision. They keep the names of its values.
        config: which node gets which form.
        target: where to write; weights go to `<target name>.data` beside it.

    Raises:
        UnsupportedModelError: a node is not one with weights, or has no form of the precision wanted.
    """
    splicer = Splicer(open_part(base))
    opened = {precision: open_part(path) for precision, path in parts.items()}
    _check(config, splicer, opened)
    assembly = Assembly(splicer.base)
    replaced: dict[str, Form] = {}
    counts: Counter[str] = Counter()
    for name, node in splicer.nodes.items():
        precision = config.assignment.get(name, FLOAT32)
        if precision == FLOAT32:
            continue
        replaced[node.output[0]] = _form(splicer, name, precision, opened, assembly)
        counts[precision] += 1
    nodes: dict[str, NodeProto] = {}  # by first output: what several slices share is there once
    for node in splicer.base.model.graph.node:
        form = replaced.get(node.output[0])
        for new in form.nodes if form else (node,):
            nodes.setdefault(new.output[0], new)
    assembly.set_nodes(nodes.values())
    before, after = count_ops(splicer.base.model), count_ops(assembly.model)
    assembly.save(target)
    return PassReport.between(
        before,
        after,
        name="mix precisions",
        summary=_summary(counts, len(splicer.nodes)),
        float32_nodes=tuple(name for name in splicer.nodes if config.assignment.get(name, FLOAT32) == FLOAT32),
    )


def quantized_nodes(base: Path, part: Path) -> list[str]:
    """Names of the float32 graph's nodes that a quantized graph computes in another way, in graph order."""
    return Splicer(open_part(base)).quantized_nodes(open_part(part))


def _check(config: MixedConfig, splicer: Splicer, parts: Mapping[str, Part]) -> None:
    if unknown := [name for name in config.assignment if name not in splicer.nodes]:
        raise UnsupportedModelError(f"the graph has no node with weights called {', '.join(unknown)}")
    able = {*parts, FP16, FLOAT32}
    if unknown := sorted({precision for precision in config.assignment.values() if precision not in able}):
        raise UnsupportedModelError(f"no graph is given for {', '.join(unknown)}; there are: {', '.join(sorted(able))}")


def _form(splicer: Splicer, name: str, precision: str, parts: Mapping[str, Part], assembly: Assembly) -> Form:
    """A node's form of a precision, what it reads brought along."""
    if precision == FP16 and precision not in parts:
        form, tensors = half_form(splicer.base, splicer.nodes[name], f".{precision}")
        for tensor in tensors:
            assembly.add_tensor(tensor)
        return form
    found = splicer.form(name, parts[precision], f".{precision}")
    if found is None:
        raise UnsupportedModelError(f"the graph of {precision} computes {name} as the float32 graph does")
    assembly.add_weights(parts[precision], found)
    return found


def _summary(counts: Counter[str], total: int) -> str:
    kept = total - counts.total()
    each = [f"{count} in {precision}" for precision, count in counts.most_common()]
    return f"of {total} nodes with weights {', '.join([*each, f'{kept} in {FLOAT32}'])}"


def write_switchable(base: Path, part: Path, nodes: Sequence[str], target: Path) -> None:
    """Write a graph in which each of `nodes` runs in float32 or in the part's form, as the input SWITCHES says.

    Args:
        base: the float32 graph.
        part: a graph that was made from it.
        nodes: names, of `quantized_nodes`.
        target: where to write.
    """
    splicer, opened = Splicer(open_part(base)), open_part(part)
    assembly = Assembly(splicer.base)
    switched: dict[str, list[NodeProto]] = {}
    for index, name in enumerate(nodes):
        node = splicer.nodes[name]
        form = _quantized_form(splicer, name, opened, assembly)
        assembly.add_tensor(numpy_helper.from_array(np.array(index, np.int64), f"{SWITCHES}.{index}"))
        switch = f"{SWITCHES}.{index}.on"
        switched[node.output[0]] = [
            helper.make_node("Gather", [SWITCHES, f"{SWITCHES}.{index}"], [switch], name=switch),
            helper.make_node(
                "If",
                [switch],
                [node.output[0]],
                name=f"{SWITCHES}.{index}.if",
                then_branch=_branch(form.nodes, f".{index}.on"),
                else_branch=_branch([node], f".{index}.off"),
            ),
        ]
    value = helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(nodes)])
    assembly.model.graph.input.append(value)
    own = splicer.base.model.graph.node
    assembly.set_nodes(new for node in own for new in switched.get(node.output[0], [node]))
    assembly.save(target)


def _branch(nodes: Sequence[NodeProto], suffix: str) -> GraphProto:
    """Nodes as a subgraph of their own: no name of a value may be one of the graph around it."""
    renamed = {name: f"{name}{suffix}" for node in nodes for name in node.output if name}
    copies = []
    for node in nodes:
        copy = NodeProto.FromString(node.SerializeToString())
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        copy.name = f"{node.name}{suffix}"
        copies.append(copy)
    result = helper.make_tensor_value_info(copies[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(copies, f"branch{suffix}", [], [result])


ERRORS, SQUARES = "onnxpress.errors", "onnxpress.squares"
"""Outputs of a graph that compares forms: float32 [nodes], sums over all elements of what each node gives."""
SIZES = "onnxpress.sizes"
"""Output of the same: int64 [nodes], how many elements these are."""


def _quantized_form(splicer: Splicer, name: str, part: Part, assembly: Assembly) -> Form:
    """The part's form of a node, whose weights are now in the graph."""
    form = splicer.form(name, part, ".part")
    if form is None:
        raise UnsupportedModelError(f"the two graphs compute {name} alike")
    assembly.add_weights(part, form)
    return form


def write_comparing(base: Path, part: Path, nodes: Sequence[str], target: Path) -> None:
    """Write a graph that computes each of `nodes` in both forms, from float32 inputs, and gives the sums of the squared
    differences (ERRORS) and of the squared float32 results (SQUARES), and the number of elements (SIZES)."""
    splicer, opened = Splicer(open_part(base)), open_part(part)
    assembly = Assembly(splicer.base)
    added: dict[str, NodeProto] = {}
    for index, name in enumerate(nodes):
        form = _quantized_form(splicer, name, opened, assembly)
        result = splicer.nodes[name].output[0]
        other, difference = f"{result}.other", f"{result}.difference"
        last = NodeProto.FromString(form.nodes[-1].SerializeToString())
        last.output[0] = other
        new = [
            *form.nodes[:-1],
            last,
            helper.make_node("Sub", [other, result], [difference]),
            helper.make_node("ReduceSumSquare", [difference], [f"{ERRORS}.{index}"], keepdims=0),
            helper.make_node("ReduceSumSquare", [result], [f"{SQUARES}.{index}"], keepdims=0),
            helper.make_node("Size", [result], [f"{SIZES}.{index}"]),
        ]
        for node in new:
            added.setdefault(node.output[0], node)
    joined = []
    for name, kind in ((ERRORS, TensorProto.FLOAT), (SQUARES, TensorProto.FLOAT), (SIZES, TensorProto.INT64)):
        axis = f"{name}.axis"
        assembly.add_tensor(numpy_helper.from_array(np.array([0], np.int64), axis))
        each = [f"{name}.{index}" for index in range(len(nodes))]
        joined += [helper.make_node("Unsqueeze", [one, axis], [f"{one}.one"]) for one in each]
        joined.append(helper.make_node("Concat", [f"{one}.one" for one in each], [name], axis=0))
        assembly.model.graph.output.append(helper.make_tensor_value_info(name, kind, [len(nodes)]))
    assembly.set_nodes([*splicer.base.model.graph.node, *added.values(), *joined])
    assembly.save(target)
