"""Which outputs of a given graph a task uses, found by their names and by what they are for a sample of two texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxpress.exporter.sentence import SentenceConfig
from onnxpress.runtime.errors import UnsupportedModelError

Array = npt.NDArray[Any]
_HIDDEN = ("last_hidden_state", "token_embeddings")
_SHAPES = {
    "token-classification": "[batch, sequence, labels]",
    "question-answering": "[batch, sequence]",
    "fill-mask": "[batch, sequence, vocabulary]",
    "feature-extraction": "[batch, sequence, hidden size]",
}


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a task reads of a graph, and what is left to do."""

    names: tuple[str, ...]
    """As the graph has them, in the order of the task's outputs."""
    then: Literal["nothing", "pick masks", "pool"] = "nothing"


def task_outputs(task: str) -> tuple[str, ...]:
    """Names of the outputs of our graphs."""
    if task == "question-answering":
        return ("start_logits", "end_logits")
    return ("sentence_embedding",) if task == "feature-extraction" else ("logits",)


def plan_outputs(
    file: Path,
    task: str,
    sentence: SentenceConfig,
    inputs: Mapping[str, Any],
    found: Mapping[str, Array],
    shape: tuple[int, ...],
) -> Outputs:
    """
    Args:
        file: the ONNX file, for an error.
        task: what it shall do.
        sentence: how embeddings are made, for feature-extraction.
        inputs: the graph's, by name.
        found: its outputs for a sample, by name.
        shape: of the sample's token ids, [2, s].

    Raises:
        UnsupportedModelError: it has no outputs for the task, or they are not float32 of the shape they should have.
    """
    if task == "feature-extraction":
        plan = _plan_embedding(sentence, inputs, found)
    else:
        picks = task == "fill-mask" and "mask_positions" not in inputs
        plan = Outputs(_named(found, task_outputs(task)), "pick masks" if picks else "nothing")
    if not plan.names:
        listed = ", ".join(f"{name} {list(value.shape)}" for name, value in list(found.items())[:8])
        raise UnsupportedModelError(
            f"{file} has no output {' and '.join(task_outputs(task))} for the task {task} (it has {listed}); is --task "
            "right?"
        )
    for name in plan.names:
        _check(file, task, plan, name, found[name], shape)
    return plan


def _plan_embedding(sentence: SentenceConfig, inputs: Mapping[str, Any], found: Mapping[str, Array]) -> Outputs:
    embedding = found.get("sentence_embedding")
    # What sentence-transformers does to an embedding after its modules, exporters leave out.
    complete = sentence.truncate_dim is None and (sentence.include_prompt or "pooling_mask" in inputs)
    if embedding is not None and embedding.ndim == 2 and complete:
        return Outputs(("sentence_embedding",))
    names = [name for name in (*_HIDDEN, *found) if name in found and found[name].ndim == 3]
    return Outputs(tuple(names[:1]), "pool")


def _named(found: Mapping[str, Array], names: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs of these names; where there are none, and just as many outputs, those."""
    if all(name in found for name in names):
        return names
    return tuple(found) if len(found) == len(names) else ()


def _check(file: Path, task: str, plan: Outputs, name: str, value: Array, shape: tuple[int, ...]) -> None:
    if value.dtype != np.float32:
        raise UnsupportedModelError(f"{file} gives {name} as {value.dtype}; give the float32 model")
    per_row, per_token = (2, None), (*shape, None)
    wanted: tuple[int | None, ...] = {
        "token-classification": per_token,
        "question-answering": shape,
        "fill-mask": per_token if plan.then == "pick masks" else (2, 1, None),
        "feature-extraction": per_token if plan.then == "pool" else per_row,
    }.get(task, per_row)
    sizes = zip(wanted, value.shape, strict=False)
    if len(wanted) != value.ndim or any(size not in (None, have) for size, have in sizes):
        raise UnsupportedModelError(
            f"{file} gives {name} of shape {list(value.shape)} for {shape[0]} texts of {shape[1]} tokens; the task "
            f"{task} needs {_SHAPES.get(task, '[batch, labels]')}; is --task right?"
        )
