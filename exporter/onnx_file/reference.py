"""An ONNX file as the model to press: quantized, verified against itself, measured and sealed like any other.

Reads no weights for PyTorch; imports PyTorch only where pooling has to be appended (`head.py`).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.labels import label_names
from onnxpress.exporter.onnx_file.folder import weight_files
from onnxpress.exporter.onnx_file.graph import (
    HEAD_OPSET,
    OLDEST_OPSET,
    count_parameters,
    embedding_rows,
    fill_empty,
    pick_masks,
    raise_opset,
    read_program,
    refuse_converted,
    set_inputs,
    set_outputs,
)
from onnxpress.exporter.onnx_file.model import OnnxModel
from onnxpress.exporter.reference import Limits
from onnxpress.exporter.sentence import position_limit
from onnxpress.exporter.source import Source
from onnxpress.quantize.graphs import save_program
from onnxpress.runtime.errors import UnsupportedModelError, first_line

# What the name of a class in config.json ends with.
_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}


class OnnxReference(OnnxModel):
    """A `Reference`: the file as it is computes what variants are compared with, and they are made from its graph."""

    def __init__(self, source: Source, task: str, config: ExportConfig, file: Path) -> None:
        """
        Raises:
            UnsupportedModelError: the file is not a float32 model for the task.
        """
        program = self._read(file)
        refuse_converted(program, file)
        super().__init__(source, task, config, file)
        self.parameters = count_parameters(program)
        length = self.settings.tokenizer.max_length
        self.limits = Limits(
            positions=position_limit(self.config) or length,
            vocabulary=embedding_rows(program) or _count(self.config, "vocab_size") or self.backend.get_vocab_size(),
            heads=_count(self.config, "num_attention_heads") or 1,
        )

    @property
    def architecture(self) -> str:
        """See `Reference`."""
        listed = self.source.config.get("architectures")
        return str(listed[0]) if isinstance(listed, list) and listed else "an ONNX graph"

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Reference`."""
        return ()

    def write_graph(self, path: Path) -> None:
        """See `Reference`: the file's graph with our inputs, outputs and axes, and with what the file leaves to do."""
        program = self._read(self.file)
        pools = self.plan.then == "pool"
        raise_opset(program, HEAD_OPSET if pools else OLDEST_OPSET, self.file)
        values = {str(value.name): value for value in program.graph.outputs}
        wanted = [values[name] for name in self.plan.names]
        set_inputs(program, self.inputs)
        if pools:
            wanted = [self.head.append(program, wanted[0])]
        elif self.plan.then == "pick masks":
            wanted = [pick_masks(program, wanted[0])]
        if self.fills_empty:
            ranks = [len(tensor.shape) for tensor in self.outputs]
            wanted = [fill_empty(program, value, rank) for value, rank in zip(wanted, ranks, strict=True)]
        set_outputs(program, wanted, self.outputs)
        save_program(program, path)

    @staticmethod
    def _read(file: Path) -> onnx_ir.Model:
        try:
            return read_program(file, weight_files(file))
        except UnsupportedModelError:
            raise
        # protobuf, onnx_ir and its passes raise many types; each means the same to the user.
        except Exception as error:
            reason = first_line(error)
            raise UnsupportedModelError(f"{file} is not an ONNX file that can be read: {reason}") from error


def load_onnx(source: Source, task: str, config: ExportConfig) -> OnnxReference:
    """The ONNX file of a source.

    Raises:
        UnsupportedModelError: it is not a float32 model for the task, or lacks what describes it.
    """
    assert source.onnx is not None
    return OnnxReference(source, task, config, source.onnx)


def infer_task(source: Source) -> str:
    """What a graph is for, by its outputs, and where these leave a choice by config.json.

    Raises:
        UnsupportedModelError: neither says it.
    """
    assert source.onnx is not None
    graph = OnnxReference._read(source.onnx).graph
    outputs = {str(value.name): value.shape for value in graph.outputs}
    listed = source.config.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    named = next((task for ending, task in _HEADS.items() if architecture.endswith(ending)), None)
    if {"start_logits", "end_logits"} <= outputs.keys():
        return "question-answering"
    if "logits" not in outputs and {"sentence_embedding", "last_hidden_state", "token_embeddings"} & outputs.keys():
        return "feature-extraction"
    shape = outputs.get("logits", next(iter(outputs.values()), None))
    if shape is not None and "logits" in outputs:
        if len(shape) == 2:
            return "text-classification"
        if named not in ("fill-mask", "token-classification"):
            named = "token-classification" if shape[-1] == len(label_names(source)) else "fill-mask"
    if named is None:
        raise UnsupportedModelError(
            f"neither the outputs of {source.onnx} ({', '.join(outputs)}) nor config.json say what it is "
            "for; give --task"
        )
    return named


def _count(config: object, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) and value > 0 else None
