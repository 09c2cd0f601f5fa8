"""Logits to scores."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from onnxpress.runtime.encoder import FloatArray

ScoreFunction = Literal["softmax", "sigmoid", "identity"]
FUNCTIONS: tuple[ScoreFunction, ...] = get_args(ScoreFunction)


def scores_of(logits: FloatArray, function: ScoreFunction) -> FloatArray:
    """Scores of logits [..., labels] by a model's function (see `LabelSettings`), of the same shape."""
    if function == "softmax":
        return softmax(logits)
    return sigmoid(logits) if function == "sigmoid" else logits


def softmax(logits: FloatArray) -> FloatArray:
    """exp(x) / sum(exp(x)) over the last axis, float32."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: FloatArray = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), float32, without overflow for large negative values."""
    powers = np.exp(-np.abs(logits))
    result: FloatArray = np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers)).astype(np.float32)
    return result
