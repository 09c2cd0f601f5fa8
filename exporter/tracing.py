"""A PyTorch model to one ONNX graph: only batch, sequence and masks vary, and axes have the names people expect.

The sizes are free: torch.export proves it for sizes given as `Dim`s, and where it refuses those it finds the sizes out
by itself, and what it found is checked here. Does not compare the graph with the model; `gate.py` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir
import torch
from torch import Tensor
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from onnxpress.exporter.families import replaced, traceable
from onnxpress.exporter.graph_names import clean_metadata, rename_axes
from onnxpress.runtime.errors import UnsupportedModelError, first_line

if TYPE_CHECKING:
    from onnxpress.exporter.loading import LoadedModel

OPSET = 20
"""The newest ONNX operator set whose every operator used here has CPU and CUDA kernels in onnxruntime 1.28."""

_SIZES = {"batch": 2, "sequence": 7, "masks": 3}
"""Of the inputs a model is traced with: all different, and none of them 1, which torch.export takes as fixed."""
_FREE_FROM = 3
"""Lengths from this on, up to the longest but one, must be free. 1 and 2 torch.export sets apart although its graphs
hold for them (an axis of 1 stretches), and so it does with a whole table (`if length == table_length: return table`).
The gate tries those."""
_TRIED = 2048
"""Lengths below this are held against conditions one by one."""

_ATTENTION = torch.nn.functional.scaled_dot_product_attention  # before transformers patches it


def trace(model: LoadedModel) -> onnx_ir.Model:
    """Trace a model with random token ids of shape [2, 7]; the sizes are free afterwards.

    Raises:
        UnsupportedModelError: torch.export cannot trace the model, or not with free sizes.
    """
    longest = model.limits.positions
    samples = _samples(model)
    # Sizes that inputs share, by name: with Dim.AUTO each input may get a batch axis of its own.
    dims = {
        "batch": torch.export.Dim("batch"),
        "sequence": torch.export.Dim("sequence", max=longest),
        "masks": torch.export.Dim("masks"),
    }
    named = {name: {0: dims["batch"], 1: dims[axis]} for name, axis in model.input_axes.items()}
    found = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in samples}
    exporter = _Exporter()
    try:
        with traceable(model.module):
            try:
                program = exporter.export(model.module, samples, config=_config(named)).program
            except torch._dynamo.exc.UserError:
                # A condition on the sizes that torch.export cannot prove for all of them, such as 2s - 1 != s.
                program = exporter.export(model.module, samples, config=_config(found)).program
    except UnsupportedModelError:
        raise
    # torch.export has no common base class for what it refuses.
    except Exception as error:
        raise _cannot_trace(model, first_line(error)) from error
    _check_free(model, program)
    _check_conditions(model, exporter.exported)
    rename_axes(program, _axis_names(program, model.input_axes))
    clean_metadata(program)
    return program


class _Recorder(DynamoExporter):
    """Keeps what torch.export made, whose conditions say for which sizes the graph holds."""

    exported: torch.export.ExportedProgram

    def export_program(self, model: Any, sample_inputs: Any, config: Any) -> Any:
        with _attention_as_computed():
            self.exported, metadata = super().export_program(model, sample_inputs, config)
        return self.exported, metadata


class _Exporter(OnnxExporter, _Recorder):
    """OnnxExporter, whose `super().export_program` is the recorder's by this order of bases."""


def _config(dynamic_shapes: Mapping[str, Any]) -> OnnxConfig:
    return OnnxConfig(dynamic_shapes=dict(dynamic_shapes), opset_version=OPSET)


def _samples(model: LoadedModel) -> dict[str, Tensor]:
    """Valid inputs: random token ids, nothing padded, one segment, positions of masks inside the sequence."""
    sizes = {**_SIZES, "sequence": min(_SIZES["sequence"], model.limits.positions)}
    generator = torch.Generator().manual_seed(0)
    samples = {}
    for name, axis in model.input_axes.items():
        shape = (sizes["batch"], sizes[axis])
        if name == "input_ids":
            samples[name] = torch.randint(0, model.limits.vocabulary, shape, generator=generator)
        elif axis == "masks":
            samples[name] = torch.randint(0, sizes["sequence"], shape, generator=generator)
        else:
            samples[name] = torch.full(shape, 0 if name == "token_type_ids" else 1)
    return samples


@contextlib.contextmanager
def _attention_as_computed() -> Iterator[None]:
    """Trace attention that has a float mask as PyTorch computes it on the CPU.

    A row whose keys are all masked by the smallest float attends to all of them alike; transformers' patch of
    `scaled_dot_product_attention` would make it zero, which is right for masks of bool and for -inf only.
    """
    patched = torch.nn.functional.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **by: Any
    ) -> Any:
        if attn_mask is None or attn_mask.dtype == torch.bool:
            return patched(query, key, value, attn_mask, *rest, **by)
        attended = (attn_mask > -torch.inf).to(query.dtype).sum(dim=-1, keepdim=True) >= 1
        output = _ATTENTION(query, key, value, attn_mask, *rest, **by)
        return torch.where(attended, output, torch.zeros((), dtype=output.dtype, device=output.device))

    with replaced(torch.nn.functional, "scaled_dot_product_attention", attend):
        yield


def _check_free(model: LoadedModel, program: onnx_ir.Model) -> None:
    """Refuse a graph that has a traced size written into an input."""
    shapes = {value.name: value.shape for value in program.graph.inputs}
    for name, axis in model.input_axes.items():
        shape = shapes.get(name)
        if shape is None:
            raise _cannot_trace(model, f"its input {name} was left out while tracing")
        for dim, what in zip(shape, ("batch", axis), strict=True):
            if not str(dim).isidentifier():  # a number, or a symbol whose name is a number
                raise _cannot_trace(model, f"its {what} size was fixed at {dim} while tracing")


def _check_conditions(model: LoadedModel, exported: torch.export.ExportedProgram) -> None:
    """Refuse a graph that torch.export made for some of the sizes only.

    The conditions are Python expressions in the sizes of the inputs, such as `L['input_ids'].size()[1] <= 28`. Those
    that speak of several inputs hold because these share their sizes.
    """
    texts = getattr(exported, "_guards_code", None) or ()
    conditions = [(text, compile(text, "<condition>", "eval")) for text in texts]
    longest = model.limits.positions
    for sequence in {*range(_FREE_FROM, min(longest, _TRIED)), max(_FREE_FROM, longest - 1)}:
        for batch, masks in ((3, 4), (4, 3)):
            sizes = {"batch": batch, "sequence": sequence, "masks": masks}
            inputs = {name: _Sized((batch, sizes[axis])) for name, axis in model.input_axes.items()}
            for text, condition in conditions:
                if not eval(condition, {"L": inputs}):
                    raise _cannot_trace(model, f"its graph would not hold for {sequence} tokens ({text})")


class _Sized:
    """Stands for an input in a condition."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape

    def size(self) -> tuple[int, int]:
        """As of a tensor."""
        return self._shape


def _cannot_trace(model: LoadedModel, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"torch.export cannot trace {model.architecture} ({model.model_type}) with free batch and sequence sizes: "
        f"{reason}"
    )


def _axis_names(program: onnx_ir.Model, input_axes: Mapping[str, str]) -> dict[str, str]:
    """What the axes that torch calls s18, s41 are."""
    return {
        str(dim.value): name
        for value in program.graph.inputs
        for dim, name in zip(value.shape, ("batch", input_axes[value.name]), strict=True)
    }
