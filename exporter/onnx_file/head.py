"""What follows the transformer of a sentence embedder, computed in PyTorch and appended to a graph that ends before.

The head comes from `exporter/sentence`, is traced by itself, and its nodes move into the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes import common as passes
from torch import nn

from onnxpress.exporter.onnx_file.graph import HEAD_OPSET, raise_opset
from onnxpress.exporter.sentence import SentenceConfig, build_head
from onnxpress.runtime.encoder import FloatArray

_INPUTS = ("token_embeddings", "attention_mask", "pooling_mask")


class PoolingHead:
    """The modules after the transformer."""

    def __init__(self, folder: Path, sentence: SentenceConfig, hidden_size: int, allow_pickle: bool) -> None:
        """
        Args:
            folder: where `sentence` was read.
            sentence: what it says.
            hidden_size: of the transformer.
            allow_pickle: read weights stored as pickles.

        Raises:
            UnsupportedModelError: the folder's weights are missing or do not fit.
        """
        self._module: nn.Module = build_head(folder, sentence, hidden_size, allow_pickle=allow_pickle)
        self._hidden_size = hidden_size
        self._masks = _INPUTS[1 : 2 if sentence.include_prompt else 3]

    def compute(self, hidden: FloatArray, feeds: Mapping[str, Any]) -> FloatArray:
        """Hidden states [batch, sequence, hidden_size] and the graph's inputs to embeddings [batch, d]."""
        with torch.inference_mode():
            masks = [torch.from_numpy(feeds[name]) for name in self._masks]
            embedding: FloatArray = self._module(torch.from_numpy(np.asarray(hidden)), *masks).numpy()
        return embedding

    def append(self, program: onnx_ir.Model, hidden: onnx_ir.Value) -> onnx_ir.Value:
        """Append the head to a graph and return the embeddings.

        Args:
            program: the graph, of opset `HEAD_OPSET` or newer; the masks are among its inputs.
            hidden: its hidden states [batch, sequence, hidden_size].
        """
        head = self._trace()
        raise_opset(head, program.graph.opset_imports[""], Path("the head"))
        graph, masks = program.graph, {value.name: value for value in program.graph.inputs}
        read = [hidden, *(masks[name] for name in self._masks)]
        for value, replacement in zip(head.graph.inputs, read, strict=True):
            value.replace_all_uses_with(replacement)
        (embedding,) = head.graph.outputs
        head.graph.outputs.clear()
        for name, value in list(head.graph.initializers.items()):
            del head.graph.initializers[name]
            value.name = f"head.{name}"
            graph.register_initializer(value)
        nodes = list(head.graph)
        head.graph.remove(nodes)
        for node in nodes:
            node.name = f"head.{node.name}"
            for value in node.outputs:
                value.name = f"head.{value.name}"
        graph.extend(nodes)
        return embedding

    def _trace(self) -> onnx_ir.Model:
        batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
        mask = torch.ones(2, 7, dtype=torch.int64)
        exported = torch.onnx.export(
            self._module,
            (torch.rand(2, 7, self._hidden_size), *(mask for _ in self._masks)),
            input_names=[_INPUTS[0], *self._masks],
            opset_version=HEAD_OPSET,
            dynamic_shapes=tuple({0: batch, 1: sequence} for _ in (0, *self._masks)),
            dynamo=True,
            verbose=False,
        )
        program: onnx_ir.Model = exported.model
        passes.ClearMetadataAndDocStringPass()(program)
        return program
