"""Documents in the order in which they answer a query: the task `text-ranking`, by a cross-encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from onnxpress.runtime.encoder import Encoder, FloatArray, packed
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tasks.base import TaskModel
from onnxpress.runtime.tasks.scores import scores_of
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps
from onnxpress.runtime.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document and how well it answers the query."""

    index: int
    """Its position among the documents given."""
    score: float
    """Higher is better; a probability or any number, as the model was trained."""
    text: str


class Reranker(TaskModel):
    """A cross-encoder: it reads query and document together and gives one number."""

    needs = "labels"

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        assert settings.labels is not None
        self.labels = settings.labels

    @in_steps
    def rank(self, query: str, documents: Iterable[str], *, top_k: int | None = None) -> Steps[list[RankedDocument]]:
        """Put documents in order.

        Args:
            query: what is asked.
            documents: what may answer it; where query and document are too long together, the longer one is cut.
            top_k: give only so many; None for all.

        Returns:
            the documents, best first; of equal ones the earlier first.

        Raises:
            InvalidInputError: query or a document is not a usable text, or `top_k` is not a positive number.
            ForkError: called in another process than the one that loaded the model.
        """
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InvalidInputError(f"top_k is {top_k!r}; give a whole number of at least 1, or None")
        if isinstance(documents, str):
            raise InvalidInputError("documents is one text; give a list of them")
        texts = list(documents)
        scores = yield from self._scores([(query, text) for text in texts])
        order = sorted(range(len(texts)), key=lambda index: -scores[index])
        return [RankedDocument(index, float(scores[index]), texts[index]) for index in order[:top_k]]

    @in_steps
    def score(self, pairs: Iterable[tuple[str, str]]) -> Steps[FloatArray]:
        """Score pairs of query and document.

        Returns:
            float32 array [n] in the order of `pairs`; higher is better.

        Raises:
            InvalidInputError: an item is not a pair of usable texts.
            ForkError: called in another process than the one that loaded the model.
        """
        return (yield from self._scores(pairs))

    def _scores(self, pairs: Iterable[tuple[str, str]]) -> Steps[FloatArray]:
        self.encoder.check_process()
        items = list(pairs)
        for index, item in enumerate(items):
            if not isinstance(item, tuple):
                raise InvalidInputError(
                    f"item {index} is of type {type(item).__name__}; give tuples of query and document"
                )
        rows = yield Work(packed(self.tokenizer.encode(items)))
        if not rows:
            return np.zeros(0, np.float32)
        return scores_of(np.stack([row["logits"] for row in rows]), self.labels.function)[:, 0]
