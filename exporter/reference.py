"""What every variant is made from and compared with. Imports neither PyTorch nor onnx until a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.source import Source
from onnxpress.runtime.encoder import FloatArray
from onnxpress.runtime.manifest import TaskSettings, Tensor

if TYPE_CHECKING:
    import tokenizers


class Reference(Protocol):
    """A model in PyTorch (`loading.py`, `decoder/reference.py`), or an ONNX file that was given
    (`onnx_file/reference.py`)."""

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer, which cuts texts at the maximum length."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Of the graph, each int64 [batch, ...]."""

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Of the graph, each float32 [batch, ...]."""

    @property
    def settings(self) -> TaskSettings:
        """What the task needs to know beside the graph."""

    @property
    def limits(self) -> Limits:
        """What inputs the graph takes."""

    @property
    def architecture(self) -> str:
        """For a person."""

    @property
    def parameters(self) -> int:
        """Number of weights."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what a bundle does otherwise than the model's own files say."""

    def compute(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        """What the gate compares, by name, for the inputs of a case (`make_cases`)."""

    def write_graph(self, path: Path) -> None:
        """Write the float32 graph, its weights in a file beside it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What inputs a graph takes."""

    positions: int
    """Tokens at most."""
    vocabulary: int
    """Token ids lie below it."""
    heads: int
    """Attention heads of a layer: with the length, what the largest activation takes."""


def load_reference(source: Source, task: str, config: ExportConfig) -> Reference:
    """The model that variants are made from and compared with.

    Raises:
        UnsupportedModelError: it cannot be loaded, or not for this task.
    """
    if source.onnx is not None:
        from onnxpress.exporter.onnx_file.reference import load_onnx

        return load_onnx(source, task, config)
    if task == "text-generation":
        from onnxpress.exporter.decoder.reference import load_decoder

        return load_decoder(source, config)
    from onnxpress.exporter.loading import load_model

    return load_model(source, task, config)
