"""What a model of each task does with a list of texts when it is measured: one unit of its work for each text.

Decoders have no such unit; what is measured of them is in runtime/generation/timing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxpress.runtime.tasks.answering import Reader
from onnxpress.runtime.tasks.base import TaskModel
from onnxpress.runtime.tasks.classification import Classifier
from onnxpress.runtime.tasks.embedding import Embedder
from onnxpress.runtime.tasks.filling import Filler
from onnxpress.runtime.tasks.ranking import Reranker
from onnxpress.runtime.tasks.tagging import Tagger

QUERY = "when does the order arrive"
"""What documents are ranked for and contexts are asked."""
HYPOTHESIS = "This example is about an order."


Work = Callable[[list[str]], Any]


def work_of(model: TaskModel) -> Work:
    """The function that is timed: texts to answers."""
    if isinstance(model, Embedder):
        return model.embed
    if isinstance(model, Classifier):
        if model.settings.task == "zero-shot-classification":
            return lambda texts: model.classify([(text, HYPOTHESIS) for text in texts])
        return model.classify
    if isinstance(model, Reranker):
        return lambda texts: model.score([(QUERY, text) for text in texts])
    if isinstance(model, Tagger):
        return model.tag
    if isinstance(model, Reader):
        return lambda texts: model.answer([QUERY] * len(texts), texts)
    assert isinstance(model, Filler)
    return lambda texts: model.fill([f"{model.mask_token} {text}" for text in texts])  # first, so it is never cut off
