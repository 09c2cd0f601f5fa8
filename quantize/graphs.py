"""What every pass needs: reading and writing ONNX files with their weights beside them, counting, and reporting."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx.external_data_helper import load_external_data_for_model

from onnxpress.runtime.errors import InvalidBundleError

if TYPE_CHECKING:
    import onnx_ir


MODULE_KEY = "onnxpress.module"
"""Node metadata: the PyTorch module a node was traced from."""


@dataclasses.dataclass(frozen=True)
class PassReport:
    """What a pass did to a graph."""

    name: str
    summary: str
    nodes_before: int
    nodes_after: int
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Operators that were added or fused, and how many."""
    float32_nodes: tuple[str, ...] = ()
    """Nodes an FP16 pass left in float32, and why, as text."""

    @classmethod
    def between(
        cls,
        before: Counter[str],
        after: Counter[str],
        name: str,
        summary: str,
        float32_nodes: tuple[str, ...] = (),
    ) -> PassReport:
        """The report of a pass by the operators before and after it (`count_ops`), as far as there are more of them."""
        counts = {op: after[op] - before[op] for op in sorted(after) if after[op] > before[op]}
        return cls(name, summary, before.total(), after.total(), counts, float32_nodes)


def load_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with all of its weights in memory."""
    model = onnx.load(str(path), load_external_data=False)
    load_external_data_for_model(model, str(path.parent))
    return model


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write an ONNX file; weights of 1 KiB and more go to `<name>.data`, which onnxruntime maps into memory, and are no
    longer in `model` afterwards."""
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to an existing file
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
    )


def save_program(program: onnx_ir.Model, path: Path) -> None:
    """`save_graph` for a graph of onnx_ir, which stays as it is."""
    import onnx_ir  # takes as long to import as all of onnxpress

    onnx_ir.save(program, str(path), external_data=f"{path.name}.data")


def check_structure(path: Path) -> None:
    """Check an ONNX file by the rules of the format: types, shapes, operators and their attributes.

    Raises:
        InvalidBundleError: it breaks one.
    """
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise InvalidBundleError(f"{path} is not a valid ONNX graph: {str(error).splitlines()[0]}") from error


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names a node reads, also from within its subgraphs."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            own = {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
            for inner in attribute.g.node:
                yield from (name for name in reads(inner) if name not in own)
                own.update(inner.output)
            yield from (value.name for value in attribute.g.output if value.name not in own)


def needed_nodes(nodes: Sequence[onnx.NodeProto], results: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that values need, in their order. `nodes`: in an order that runs."""
    wanted, kept = set(results), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def count_ops(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator the main graph has."""
    return Counter(node.op_type for node in model.graph.node)


def module_of(node: onnx.NodeProto) -> str | None:
    """The PyTorch module a node was traced from, if it says so: nodes that passes have made do not."""
    return next((entry.value for entry in node.metadata_props if entry.key == MODULE_KEY), None)


def drop_initializer_shapes(model: onnx.ModelProto) -> None:
    """Remove value_info entries of initializers: they repeat what the initializer says, and go stale with it."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    keep = [info for info in model.graph.value_info if info.name not in initializers]
    del model.graph.value_info[:]
    model.graph.value_info.extend(keep)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: libraries are told by name which ones to change or to leave."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{node.output[0]}_{number}"
        taken.add(node.name)


def replace_messages(field: Any, kept: Sequence[Any]) -> None:
    """Leave a repeated field of a message with these of its messages or others."""
    copies = [type(message).FromString(message.SerializeToString()) for message in kept]
    del field[:]
    field.extend(copies)
