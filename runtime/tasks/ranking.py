"""Documents in the order in which they answer a query: the task `text-ranking`, by a cross-encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from onnxpress.runtime.encoder import Encoder, FloatArray
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tasks.base import TaskModel, listed
from onnxpress.runtime.tasks.scores import FUNCTIONS, ScoreFunction, scores_of
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps
from onnxpress.runtime.token_sequences import Side
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
    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_k: int | None = None,
        function: ScoreFunction | None = None,
        truncate: bool = True,
        side: Side | None = None,
    ) -> Steps[list[RankedDocument]]:
        """Put documents in order.

        Args:
            query: what is asked.
            documents: what may answer it; where query and document are too long together, the longer one is cut.
            top_k: give only so many; None for all.
            function: what makes scores of logits: `identity` gives the logits themselves, `sigmoid` numbers between 0
                and 1; None for the model's own. The order is that of the logits.
            truncate: False makes query and document that are too long together an error.
            side: where texts are cut, `left` or `right`; None for the tokenizer's own side, mostly the right.

        Returns:
            the documents, best first; of equal ones the earlier first.

        Raises:
            InvalidInputError: query or a document is not a usable text, or an option cannot be used.
            ForkError: called in another process than the one that loaded the model.
        """
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise InvalidInputError(f"top_k is {top_k!r}; give a whole number of at least 1, or None")
        if isinstance(documents, str):
            raise InvalidInputError("documents is one text; give a list of them")
        if function not in (None, *FUNCTIONS) or function == "softmax":
            raise InvalidInputError(f"function is {function!r}; give identity, sigmoid or None")
        if side not in (None, "left", "right"):
            raise InvalidInputError(f"side is {side!r}; give left, right or None")
        texts = listed("documents", documents, "a list of texts")
        logits = yield from self._logits([(query, text) for text in texts], truncate, side)
        order = sorted(range(len(texts)), key=lambda index: -logits[index, 0])
        scores = scores_of(logits, function or self.labels.function)[:, 0]
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
        return scores_of((yield from self._logits(pairs)), self.labels.function)[:, 0]

    def _logits(
        self, pairs: Iterable[tuple[str, str]], truncate: bool = True, side: Side | None = None
    ) -> Steps[FloatArray]:
        """[pairs, labels]"""
        self.encoder.check_process()
        items = listed("pairs", pairs, "a list of tuples of query and document")
        for index, item in enumerate(items):
            if not isinstance(item, tuple):
                raise InvalidInputError(
                    f"item {index} is of type {type(item).__name__}; give tuples of query and document"
                )
        rows = yield Work(self.tokenizer.encode_packed(items, "longest_first" if truncate else None, side))
        if not rows:
            return np.zeros((0, len(self.labels.names)), np.float32)
        return np.stack([row["logits"] for row in rows])
