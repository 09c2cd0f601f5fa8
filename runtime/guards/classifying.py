"""A guard that is a text-classification bundle: probabilities against thresholds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import ClassVar, Self

from onnxpress.runtime.errors import ClosedError, InvalidInputError, OnnxpressError, QueueFullError
from onnxpress.runtime.guards.guard import Finding
from onnxpress.runtime.guards.normalising import forms, sentences
from onnxpress.runtime.guards.settings import GuardSettings
from onnxpress.runtime.model import load
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.tasks.classification import Classifier

_INLINE_CHARACTERS = 4000
"""Up to here an event loop makes the forms of texts by itself."""


class ClassifyingGuard:
    """The model and a runner, through which the checks of all requests and streams run together."""

    passed_on: ClassVar[tuple[type[Exception], ...]] = (InvalidInputError, QueueFullError, ClosedError)

    def __init__(
        self,
        settings: GuardSettings,
        model: Classifier,
        *,
        most_waiting: int = 1024,
        most_tokens: int | None = None,
    ) -> None:
        """
        Args:
            settings: with thresholds.
            model: is closed with the guard.
            most_waiting: windows of texts that may wait.
            most_tokens: of the texts of a check, in all windows and forms; None for no limit.

        Raises:
            InvalidInputError: the model has none of the labels, or no probabilities.
        """
        if model.labels.function == "identity":
            raise InvalidInputError("it predicts numbers, not probabilities of labels; take a classifier")
        names = model.labels.names
        if unknown := [label for label in settings.thresholds if label not in names]:
            raise InvalidInputError(f"it has no label {unknown[0]!r}; its labels are: {', '.join(names[:20])}")
        self.settings = settings
        self._model = model
        self._runner = BatchingRunner(model, most_waiting=most_waiting, most_tokens=most_tokens)

    @classmethod
    def load(cls, settings: GuardSettings, *, threads: int | None, most_waiting: int, most_tokens: int | None) -> Self:
        """Load the bundle and run it once. Arguments as above; `threads` as of `onnxpress.load`.

        Raises:
            OnnxpressError: it cannot be loaded, or is of no use; the text begins with the guard's name.
        """
        assert settings.bundle is not None
        try:
            model = load(settings.bundle, settings.variant, threads=threads)
            if not isinstance(model, Classifier):
                raise InvalidInputError(
                    f"{settings.bundle} is for {model.settings.task}; a guard needs one for text-classification"
                )
            guard = cls(settings, model, most_waiting=most_waiting, most_tokens=most_tokens)
        except OnnxpressError as error:
            raise type(error)(f"the guard {settings.name!r}: {error}") from error
        model.classify("warm up")
        return guard

    async def look(self, texts: Sequence[str]) -> Finding | None:
        """As `Guard` has it. Of several labels that stop a text, the one that is most above its threshold."""
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            items = _items(texts)
        else:
            items = await asyncio.to_thread(_items, texts)
        if not items:
            return None
        scores = await self._runner.asynchronous.highest_scores([part for _, part in items])
        found: dict[str, Finding] = {}
        for (index, _), row in zip(items, scores, strict=True):
            if any(finding.index < index for finding in found.values()):
                break
            for label, threshold in self.settings.thresholds.items():
                if math.isnan(row[label]):  # it would be below every threshold
                    raise ArithmeticError("the model's probabilities are not numbers")
                if row[label] >= threshold and (label not in found or row[label] > (found[label].score or 0)):
                    found[label] = Finding(label, row[label], index)
        return max(found.values(), key=self._excess, default=None)

    def close(self, timeout: float | None = None) -> None:
        """Finish what was taken, and close the model."""
        self._runner.close(timeout=timeout)
        self._model.close()

    def _excess(self, finding: Finding) -> float:
        assert finding.score is not None
        return finding.score - self.settings.thresholds[finding.label]


def _items(texts: Sequence[str]) -> list[tuple[int, str]]:
    """The forms of all texts, each with the index of its text, and each followed by its sentences: one that must be
    stopped may be lost on a model among many others."""
    return [
        (index, part) for index, text in enumerate(texts) for form in forms(text) for part in (form, *sentences(form))
    ]
