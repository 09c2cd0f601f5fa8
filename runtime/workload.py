"""What a model of each task does with a list of texts when it is measured: one unit of its work for each text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

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


class Writes(Protocol):
    """A model that continues texts, greedily at temperature 0."""

    def generate(self, prompts: list[str], /, **options: Any) -> Any:
        """An answer to each prompt."""


NEW_TOKENS = 16
"""What a decoder writes for a text, whatever it is."""

Work = Callable[[list[str]], Any]


def work_of(model: TaskModel | Writes) -> Work:
    """The function that is timed: texts to answers."""
    if not isinstance(model, TaskModel):
        options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True}
        return lambda texts: model.generate(texts, **options)
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
