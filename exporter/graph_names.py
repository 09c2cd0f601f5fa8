"""Names of a traced graph that people can read: its axes, and the PyTorch modules its nodes came from."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir

from onnxpress.quantize.graphs import MODULE_KEY

__all__ = ["clean_metadata", "graph_input", "rename_axes"]

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def graph_input(program: onnx_ir.Model, name: str) -> onnx_ir.Value:
    """The input of that name, which the graph must have."""
    return next(value for value in program.graph.inputs if value.name == name)


def rename_axes(program: onnx_ir.Model, names: Mapping[str, str]) -> None:
    """Rename free axes, and expressions in them. The names given to `torch.export.Dim` do not survive the export.

    Args:
        program: whose values are changed.
        names: torch's name, such as s18, to the one wanted.
    """
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for value in _values(program):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                pattern.sub(lambda match: names[match.group()], dim.value)
                if isinstance(dim, onnx_ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            )


def clean_metadata(program: onnx_ir.Model, prefix: str = "") -> None:
    """Keep of each node's metadata only the PyTorch module it came from: the rest is stack traces with local paths.

    Args:
        program: whose metadata are changed.
        prefix: what the names of all modules begin with and should not.
    """
    for node in program.graph.all_nodes():
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES_KEY, ""))
        node.metadata_props.clear()
        if len(scopes) > 1:  # the last scope is the FX node's own name
            node.metadata_props[MODULE_KEY] = scopes[-2].removeprefix(prefix)
    for value in [*_values(program), *program.graph.initializers.values()]:
        value.metadata_props.clear()
    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    program.producer_name = "onnxpress"
    program.producer_version = None


def _values(program: onnx_ir.Model) -> list[onnx_ir.Value]:
    nodes = program.graph.all_nodes()
    return [*program.graph.inputs, *(output for node in nodes for output in node.outputs)]
