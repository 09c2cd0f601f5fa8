"""ONNX files as other exporters write them: axes of other names, other opsets, weights in the file or beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from torch import nn

from onnxpress.exporter.quiet import quiet
from tests.models import FAMILIES, HEADS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Chosen(nn.Module):
    """Some outputs of a model, in the order its graph gives them."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(found[name] for name in self.outputs)


def outputs_of(task: str) -> tuple[str, ...]:
    """What optimum calls a task's outputs."""
    if task == "question-answering":
        return ("start_logits", "end_logits")
    return ("last_hidden_state",) if task == "feature-extraction" else ("logits",)


def load(folder: Path, task: str, **options: Any) -> nn.Module:
    """A saved model in evaluation mode."""
    family = transformers.AutoConfig.from_pretrained(folder).model_type
    model: nn.Module = getattr(transformers, HEADS.get(task, FAMILIES[family].body)).from_pretrained(folder, **options)
    return model.eval()


def export(
    model: nn.Module,
    path: Path,
    task: str,
    *,
    opset: int = 17,
    inputs: Sequence[str] = INPUTS,
    outputs: Sequence[str] | None = None,
    fixed: Sequence[tuple[str, int]] = (),
    new: bool = False,
) -> Path:
    """Write a graph to `path` and return it.

    Args:
        model: a transformers model.
        path: the file.
        task: its task.
        opset: of the graph.
        inputs: names of the model's arguments.
        outputs: names of the model's outputs, None for those of the task.
        fixed: axes of inputs to leave as large as they are in the sample, 2 x 7.
        new: use the exporter that traces with torch.export and puts weights into a file of their own.
    """
    names = outputs_of(task) if outputs is None else tuple(outputs)
    ids = torch.randint(5, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    other = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sample = tuple(other.get(name, torch.zeros_like(ids)) for name in inputs)
    module = _Chosen(model, inputs, names).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"input_names": list(inputs), "output_names": list(names), "opset_version": opset}
    with quiet():
        if new:
            batch, sequence = torch.export.Dim("batch_size"), torch.export.Dim("sequence_length", max=64)
            shapes = tuple({0: batch, 1: sequence} for _ in inputs)
            torch.onnx.export(module, sample, path, dynamo=True, dynamic_shapes=(shapes,), verbose=False, **options)
        else:
            axes = {
                name: {
                    axis: text
                    for axis, text in enumerate(("batch_size", "sequence_length"))
                    if (name, axis) not in fixed
                }
                for name in inputs
            }
            axes |= {name: {0: "batch_size"} for name in names}
            torch.onnx.export(module, sample, path, dynamo=False, dynamic_axes=axes, **options)
    return path


def describe(folder: Path, target: Path) -> Path:
    """Copy a model folder without its weights."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    return target


def optimum_folder(folder: Path, target: Path, task: str, **options: Any) -> Path:
    """A model folder as optimum writes it: configuration, tokenizer and model.onnx."""
    export(load(folder, task), describe(folder, target) / "model.onnx", task, **options)
    return target


def edit(path: Path, target: Path, change: Any) -> Path:
    """A copy of an ONNX file changed by a function of its `onnx.ModelProto`."""
    model = onnx.load(path)
    change(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)
    return target
