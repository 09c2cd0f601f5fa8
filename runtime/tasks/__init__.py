"""What people ask of a model, one module a task: texts in, plain typed results out.

Each class works over an `Encoder` and the settings of its task, so it serves a bundle and, where the two are compared,
the model in PyTorch.
"""

from __future__ import annotations

from onnxpress.runtime.tasks.answering import Reader
from onnxpress.runtime.tasks.base import TaskModel
from onnxpress.runtime.tasks.classification import Classifier
from onnxpress.runtime.tasks.embedding import Embedder
from onnxpress.runtime.tasks.filling import Filler
from onnxpress.runtime.tasks.ranking import Reranker
from onnxpress.runtime.tasks.tagging import Tagger

TASKS: dict[str, type[TaskModel]] = {
    "feature-extraction": Embedder,
    "text-classification": Classifier,
    "zero-shot-classification": Classifier,
    "text-ranking": Reranker,
    "token-classification": Tagger,
    "question-answering": Reader,
    "fill-mask": Filler,
}
"""The task's name in the manifest, and the class that serves it."""

__all__ = ["TASKS", "Classifier", "Embedder", "Filler", "Reader", "Reranker", "Tagger", "TaskModel"]
