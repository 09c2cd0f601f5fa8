"""Texts to labels: the tasks `text-classification` and, by an NLI model, `zero-shot-classification`.

Scores are made of logits as transformers' pipelines make them.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from onnxpress.runtime.encoder import Encoder, FloatArray
from onnxpress.runtime.errors import InvalidInputError, require_whole
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tasks.base import TaskModel, listed, texts_only
from onnxpress.runtime.tasks.scores import scores_of, softmax
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps
from onnxpress.runtime.token_sequences import PackedTokens
from onnxpress.runtime.tokenizer import TextOrPair, Tokenizer

HYPOTHESIS = "This example is {}."
"""What transformers' zero-shot pipeline asks unless told otherwise."""
WINDOW_TOKENS = 512
"""Of a window of `highest_scores`, where the model reads that many. More would only bury what is said in few words."""


@dataclasses.dataclass(frozen=True, slots=True)
class Classification:
    """What a model says about one text."""

    label: str
    """The best label."""
    score: float
    """Its score."""
    scores: dict[str, float]
    """Every label's score, the best first."""


class Classifier(TaskModel):
    """A model that gives each text, or pair of texts, a score for each of its labels."""

    needs = "labels"

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        assert settings.labels is not None
        self.labels = settings.labels

    # A str is an iterable of str too, here and below: the first signature that fits counts.
    @overload
    def classify(self, texts: TextOrPair) -> Classification: ...  # type: ignore[overload-overlap]

    @overload
    def classify(self, texts: Iterable[TextOrPair]) -> list[Classification]: ...

    @in_steps
    def classify(self, texts: TextOrPair | Iterable[TextOrPair]) -> Steps[Classification | list[Classification]]:
        """Classify texts.

        Args:
            texts: one text, or a pair of texts as a tuple; or any number of them. Longer ones than the model's maximum
                are truncated, of a pair the longer text first.

        Returns:
            a `Classification`, or a list of them in the order of `texts`. Scores are probabilities that sum to 1; of a
            multi-label model, one probability for each label; of a regression model, the numbers it predicts.

        Raises:
            InvalidInputError: an item is not a usable text.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        items = [texts] if isinstance(texts, str | tuple) else listed("texts", texts)
        rows = yield Work(self.tokenizer.encode_packed(items))
        found = [self._classification(row["logits"]) for row in rows]
        return found[0] if isinstance(texts, str | tuple) else found

    @in_steps
    def highest_scores(
        self, texts: Iterable[str], *, window_tokens: int | None = None
    ) -> Steps[list[dict[str, float]]]:
        """Each label's highest score in any part of each text: what is somewhere in a long text is found, and nothing
        is cut off. Parts of a long text are windows, of which each shares half of its tokens with the next.

        Args:
            texts: any number of them.
            window_tokens: of a window, special tokens included, at most the model's maximum; None for 512, at most that
                maximum. What is said in few words is found best in windows that are not much longer.

        Returns:
            for each text every label's score, as of `classify`, in the order of the model.

        Raises:
            InvalidInputError: an item is not a usable text, or `window_tokens` is no such number.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        longest = self.tokenizer.settings.max_length
        require_whole("window_tokens", window_tokens, least=8, or_none=True)
        window = min(window_tokens or WINDOW_TOKENS, longest)
        encodings = self.tokenizer.encode(texts_only(texts), stride=max(0, window // 2 - 4), max_length=window)
        windows = [[encoding, *encoding.overflowing] for encoding in encodings]
        # What has the same tokens, such as the same words in upper and lower case, is read once.
        distinct = {tuple(part.ids): part for parts in windows for part in parts}
        rows = yield Work([PackedTokens(part) for part in distinct.values()])
        scores = {ids: scores_of(row["logits"], self.labels.function) for ids, row in zip(distinct, rows, strict=True)}
        return [self._highest([scores[tuple(part.ids)] for part in parts]) for parts in windows]

    @overload
    def zero_shot(  # type: ignore[overload-overlap]
        self, texts: str, labels: Sequence[str], *, hypothesis: str = ..., multi_label: bool = ...
    ) -> Classification: ...

    @overload
    def zero_shot(
        self, texts: Iterable[str], labels: Sequence[str], *, hypothesis: str = ..., multi_label: bool = ...
    ) -> list[Classification]: ...

    @in_steps
    def zero_shot(
        self,
        texts: str | Iterable[str],
        labels: Sequence[str],
        *,
        hypothesis: str = HYPOTHESIS,
        multi_label: bool = False,
    ) -> Steps[Classification | list[Classification]]:
        """Classify texts by labels the model was not trained for: does the text entail "This example is LABEL."?

        Args:
            texts: one text or any number of them; long ones are cut, a hypothesis never is.
            labels: what to choose from.
            hypothesis: the sentence a label is put into, at its one `{}`.
            multi_label: several labels may be right: each is scored by itself, entailment against contradiction.

        Returns:
            a `Classification`, or a list of them in the order of `texts`; scores sum to 1 unless `multi_label` is set
            or there is one label.

        Raises:
            InvalidInputError: the model is not one for natural language inference (none of its labels is
                `entailment`), or an argument cannot be used.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        entailment = self._entailment()
        hypotheses = _hypotheses(labels, hypothesis)
        items = texts_only(texts)
        pairs = [(text, sentence) for text in items for sentence in hypotheses]
        rows = yield Work(self.tokenizer.encode_packed(pairs, cut="only_first"))
        if not rows:
            return []
        # [texts, labels, entailment / neutral / contradiction]
        logits = np.stack([row["logits"] for row in rows]).reshape(len(items), len(hypotheses), -1)
        if multi_label or len(hypotheses) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = softmax(logits[..., [contradiction, entailment]])[..., 1]
        else:
            scores = softmax(logits[..., entailment])
        found = [_best_first(labels, row) for row in scores]
        return found[0] if isinstance(texts, str) else found

    def _classification(self, logits: FloatArray) -> Classification:
        scores = scores_of(logits, self.labels.function)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])  # stable: ties keep the model's order
        ranked = {self.labels.names[index]: float(scores[index]) for index in order}
        label = self.labels.names[order[0]]
        return Classification(label, ranked[label], ranked)

    def _highest(self, scores: list[FloatArray]) -> dict[str, float]:
        highest = np.max(np.stack(scores), axis=0)  # NaN where there is one
        return {name: float(score) for name, score in zip(self.labels.names, highest, strict=True)}

    def _entailment(self) -> int:
        """Index of the label that says that the second text follows from the first."""
        for index, name in enumerate(self.labels.names):
            if name.lower().startswith("entail"):
                return index
        raise InvalidInputError(
            "zero_shot needs a model for natural language inference, with a label 'entailment'; this one has: "
            f"{', '.join(self.labels.names[:10])}"
        )


def _hypotheses(labels: Sequence[str], hypothesis: str) -> list[str]:
    if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
        raise InvalidInputError(f"labels is {labels!r}; give a list of at least one text to choose from")
    if len(set(labels)) < len(labels):
        raise InvalidInputError(f"labels has the same text twice: {', '.join(labels)}")
    try:
        fields = [parts[1:] for parts in string.Formatter().parse(hypothesis) if parts[1] is not None]
    except ValueError as error:
        raise InvalidInputError(f"the hypothesis {hypothesis!r:.200} cannot be filled in: {error}") from error
    # Nothing but a plain place: a width could make texts of any length, a name could read what is not meant for it.
    if fields != [("", "", None)]:
        raise InvalidInputError(
            f"the hypothesis {hypothesis!r:.200} needs one {{}}, for the label, and no other braces"
        )
    return [hypothesis.format(label) for label in labels]


def _best_first(labels: Sequence[str], scores: FloatArray) -> Classification:
    order = np.argsort(scores)[::-1]  # the order the pipeline gives ties
    ranked = {labels[index]: float(scores[index]) for index in order}
    return Classification(labels[order[0]], float(scores[order[0]]), ranked)
