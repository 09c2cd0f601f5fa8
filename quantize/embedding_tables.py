"""Embedding tables of encoders in 8 bits: their rows are stored in blocks with a scale each (rounding.py), and a lookup
multiplies only the rows it takes (com.microsoft::GatherBlockQuantized, which onnxruntime has for the CPU and CUDA).

Half of the weights of a small encoder are its table of tokens, which no matrix product reads: this makes files and
memory smaller, not answers faster. A table that something else reads too, such as the product of a masked language
model's head, stays as it is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
from onnx import TensorProto

from onnxpress.quantize.block_nodes import BlockNodes
from onnxpress.quantize.graphs import PassReport, count_ops, name_nodes
from onnxpress.quantize.products import Weight
from onnxpress.quantize.rounding import BLOCK_SIZES, fitting_block_size, round_to_nearest
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """Which tables become 8 bits, and how.

    Raises:
        InvalidInputError: a value that is not allowed.
    """

    bits: int = 8
    """4 or 8"""
    block_size: int | None = None
    """Values of a row that share a scale: 16, 32, 64 or 128; None: 128, or less where that would fill a row up by more
    than an eighth."""
    smallest_bytes: int = 1 << 16
    """Tables that take less in float32 are left alone: those of segments and the like."""
    exclude: tuple[str, ...] = ()
    """Names of lookups, of their outputs or of tables to leave in float32."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InvalidInputError(f"embedding bits are {self.bits}; give 4 or 8")
        if self.block_size not in (None, *BLOCK_SIZES):
            raise InvalidInputError(f"the block size of embeddings is {self.block_size}; give 16, 32, 64 or 128")


def quantize_embedding_tables(source: Path, target: Path, config: EmbeddingConfig = EmbeddingConfig()) -> PassReport:
    """Write a copy of an ONNX file with its embedding tables in few bits. Results of lookups keep their names.

    Args:
        source: the model, float32 where its tables are; other parts may be quantized already.
        target: where to write it; weights go to `<target name>.data` beside it.
        config: which tables, and how.

    Raises:
        UnsupportedModelError: it has no such table.
    """
    model = onnx.load(str(source), load_external_data=False)
    name_nodes(model)
    before = count_ops(model)
    tables, left = _find_tables(model, config)
    if not tables:
        reasons = "".join(f"; {name}: {reason}" for name, reason in left.items())
        raise UnsupportedModelError(f"it has no embedding table that is worth quantizing{reasons}")
    nodes = BlockNodes(model, source.parent, accuracy_level=0)
    saved = 0
    for table in tables:
        values = nodes.read(table.name)
        block = config.block_size or fitting_block_size(table.inputs)
        rounded = round_to_nearest(values, config.bits, block, symmetric=config.bits == 8)
        nodes.replace_lookups(table, rounded)
        saved += values.nbytes - rounded.packed_codes().nbytes - rounded.scales.nbytes
    nodes.save(target)
    after = count_ops(model)
    sizes = ", ".join(f"{table.outputs:,} x {table.inputs}" for table in tables)
    return PassReport.between(
        before,
        after,
        name=f"quantize embedding tables to int{config.bits}",
        summary=f"{len(tables)} tables in {config.bits} bits ({sizes}), {saved / 1e6:.1f} MB smaller",
        float32_nodes=tuple(f"{name} ({reason})" for name, reason in left.items()),
    )


def _find_tables(model: onnx.ModelProto, config: EmbeddingConfig) -> tuple[list[Weight], dict[str, str]]:
    """Tables to quantize with the nodes that look up in them, and why others are left, by the name of the table."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    lookups: dict[str, list[onnx.NodeProto]] = {}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
        tensor = tensors.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if tensor is not None and len(tensor.dims) == 2 and axis == 0 and tensor.data_type == TensorProto.FLOAT:
            lookups.setdefault(tensor.name, []).append(node)
    tables, left = [], {}
    for name, nodes in lookups.items():
        rows, width = tensors[name].dims
        names = {name, *(node.name for node in nodes), *(node.output[0] for node in nodes)}
        if names.intersection(config.exclude):
            left[name] = "excluded"
        elif 4 * rows * width < config.smallest_bytes:
            left[name] = "small"
        elif readers[name] != len(nodes):
            left[name] = "read by other nodes too"
        else:
            tables.append(Weight(name, rows, width, by_output=True, stored_as=name, lookups=nodes))
    return tables, left
