"""What the models are asked: the examples of an evaluation, or this project's own texts, whose labels do not count."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxpress.runtime.comparing.sides import Side
from onnxpress.runtime.data.options import DataOptions
from onnxpress.runtime.evaluation import Evaluation, read_evaluation, read_evaluation_for
from onnxpress.runtime.evaluation.text_classification import LabelledText
from onnxpress.runtime.evaluation.text_generation import Passage
from onnxpress.runtime.paths import models_folder
from onnxpress.runtime.timed_texts import own_texts

NEW_TOKENS = 32
"""Tokens that decoders write after each prompt."""
_PROMPTS = 8
_PROMPT_WORDS = 12

_FILES = {
    "feature-extraction": "sentence_pairs.tsv",
    "text-classification": "sentiment.tsv",
    "zero-shot-classification": "nli.tsv",
    "token-classification": "entities.conll",
    "question-answering": "questions.jsonl",
    "text-ranking": "rankings.jsonl",
    "fill-mask": "masked_words.tsv",
}
"""Of each task, a file of `models/`."""


def read_examples(paths: Sequence[Path], side: Side, options: DataOptions) -> Evaluation:
    """Labelled examples for a side's task and labels.

    Raises:
        InvalidInputError: a file cannot be used.
    """
    return read_evaluation_for(paths, side.task, side.labels, options)


def own_examples(side: Side) -> Evaluation:
    """This project's own texts in the form of a task's examples. What is right of them is not known."""
    if side.task == "text-generation":
        return _unlabelled(side.task, [Passage("\n".join(own_texts()))])
    examples: Sequence[Any] = read_evaluation([models_folder() / _FILES[side.task]], side.task).examples
    if side.labels is not None and isinstance(examples[0], LabelledText):
        # The kind of the label says what is read out of a model's answer: one label, several, or a number.
        several = len(side.labels.names) > 1 and side.labels.function == "sigmoid"
        gold: Any = 0.0 if len(side.labels.names) == 1 else () if several else ""
        examples = [dataclasses.replace(example, gold=gold) for example in examples]
    return _unlabelled(side.task, examples)


def _unlabelled(task: str, examples: Sequence[Any]) -> Evaluation:
    return Evaluation(task, tuple(examples), (), "", "", "")


def prompts_for(evaluation: Evaluation) -> list[str]:
    """Beginnings of a few lines that stand apart from each other, for decoders to continue."""
    lines = evaluation.texts or [passage.texts[0] for passage in evaluation.examples if passage.texts]
    if not lines:  # no line of any length
        lines = [getattr(example, "text", "") for example in evaluation.examples]
    step = max(1, len(lines) // _PROMPTS)
    return [" ".join(line.split()[:_PROMPT_WORDS]) for line in lines[::step][:_PROMPTS]]
