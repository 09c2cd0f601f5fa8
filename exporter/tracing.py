"""A PyTorch model to one ONNX graph: only batch and sequence vary; axes and outputs have the names people expect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir
import torch
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from onnxpress.runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from onnxpress.exporter.loading import LoadedModel

OPSET = 20
"""The newest ONNX operator set whose every operator used here has CPU and CUDA kernels in onnxruntime 1.28."""
MODULE_KEY = "onnxpress.module"
"""Node metadata: the PyTorch module a node was traced from."""

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def trace(model: LoadedModel) -> onnx_ir.Model:
    """Trace a model with random token ids of shape [2, 7]; the sizes are free afterwards, which the gate proves.

    Raises:
        UnsupportedModelError: torch.export cannot trace the model with free batch and sequence sizes.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocabulary, (2, 7), generator=generator)
    samples = {name: torch.ones_like(ids) for name in model.input_names}
    samples["input_ids"] = ids
    if "token_type_ids" in samples:
        samples["token_type_ids"] = torch.zeros_like(ids)
    # Explicit sizes, shared by all inputs: with Dim.AUTO the mask gets a batch axis of its own, and tracing is slow.
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=model.max_positions)}
    config = OnnxConfig(dynamic_shapes=dict.fromkeys(samples, axes), opset_version=OPSET)
    try:
        program = OnnxExporter().export(model.module, samples, config=config).program
    # torch.export has no common base class for what it refuses.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UnsupportedModelError(
            f"torch.export cannot trace {model.architecture} with free batch and sequence sizes: {reason}"
        ) from error
    _rename_axes(program)
    _clean_metadata(program)
    return program


def save(program: onnx_ir.Model, path: Path) -> None:
    """Write `path` and beside it one file of weights, `<name>.data`, which onnxruntime maps into memory."""
    onnx_ir.save(program, str(path), external_data=f"{path.name}.data")


def _rename_axes(program: onnx_ir.Model) -> None:
    """Give the axes torch calls s18, s41 their names; the names given to `Dim` do not survive the export."""
    first = program.graph.inputs[0].shape
    assert first is not None
    names = {str(first[0].value): "batch", str(first[1].value): "sequence"}
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))
    for value in _values(program):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                pattern.sub(lambda match: names[match.group()], dim.value)
                if isinstance(dim, onnx_ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            )


def _values(program: onnx_ir.Model) -> list[onnx_ir.Value]:
    nodes = program.graph.all_nodes()
    return [*program.graph.inputs, *(output for node in nodes for output in node.outputs)]


def _clean_metadata(program: onnx_ir.Model) -> None:
    """Keep of each node's metadata only the PyTorch module it came from: the rest is stack traces with local paths."""
    for node in program.graph.all_nodes():
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES_KEY, ""))
        node.metadata_props.clear()
        if len(scopes) > 1:  # the last scope is the FX node's own name
            node.metadata_props[MODULE_KEY] = scopes[-2]
    for value in _values(program):
        value.metadata_props.clear()
    program.metadata_props.clear()
    program.graph.metadata_props.clear()
    program.producer_name = "onnxpress"
    program.producer_version = None
