"""Words for the gaps of texts: the task `fill-mask`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from onnxpress.runtime.encoder import Encoder, FloatArray
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tasks.base import TaskModel, texts_only
from onnxpress.runtime.tasks.scores import softmax
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps
from onnxpress.runtime.tokenizer import Tokenizer
from onnxpress.runtime.tokenizer_checks import tokenizing

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True, slots=True)
class Filling:
    """One proposal for a gap."""

    token: str
    """The token as text."""
    token_id: int
    score: float
    """Its probability among all tokens."""
    text: str
    """The whole text with this token in the gap."""


Fillings = list[Filling] | list[list[Filling]]
"""Proposals, best first; of a text with several gaps, a list for each, every one filled as if by itself."""


class Filler(TaskModel):
    """A masked language model."""

    needs = "mask"

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        assert settings.mask is not None
        self._mask = settings.mask

    @property
    def mask_token(self) -> str:
        """What marks a gap in a text."""
        return self._mask.token

    # A str is an iterable of str too: the first signature that fits counts.
    @overload
    def fill(  # type: ignore[overload-overlap]
        self, texts: str, *, top_k: int = ..., targets: Sequence[str] | None = ...
    ) -> Fillings: ...

    @overload
    def fill(
        self, texts: Iterable[str], *, top_k: int = ..., targets: Sequence[str] | None = ...
    ) -> list[Fillings]: ...

    @in_steps
    def fill(
        self, texts: str | Iterable[str], *, top_k: int = 5, targets: Sequence[str] | None = None
    ) -> Steps[Fillings | list[Fillings]]:
        """Fill the gaps of texts.

        Args:
            texts: one text or any number of them, each with at least one `mask_token`.
            top_k: how many proposals to give for a gap.
            targets: propose only these tokens.

        Returns:
            the proposals for one text, or a list of them in the order of `texts`.

        Raises:
            InvalidInputError: a text has no gap, or none within the model's maximum; or a target is not one token.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise InvalidInputError(f"top_k is {top_k!r}; give a whole number of at least 1")
        allowed = None if targets is None else self._target_ids(targets)
        items = texts_only(texts)
        encodings = self.tokenizer.encode(items)
        gaps = [
            self._gaps(index, text, encoding)
            for index, (text, encoding) in enumerate(zip(items, encodings, strict=True))
        ]
        rows = yield Work(encodings, {"mask_positions": gaps})
        found = [
            self._fillings(encoding.ids, positions, row["logits"], top_k, allowed)
            for encoding, positions, row in zip(encodings, gaps, rows, strict=True)
        ]
        return found[0] if isinstance(texts, str) else found

    def token_id_of(self, text: str) -> int | None:
        """The id of a text that is one token, None if it is none or several."""
        found: int | None = self.tokenizer.backend.token_to_id(text)
        if found is not None:
            return found
        with tokenizing():
            ids: list[int] = self.tokenizer.backend.encode(text, add_special_tokens=False).ids
        return ids[0] if len(ids) == 1 else None

    def _gaps(self, index: int, text: str, encoding: tokenizers.Encoding) -> list[int]:
        positions = [position for position, token in enumerate(encoding.ids) if token == self._mask.id]
        if not positions:
            cut = self._mask.token in text
            where = f" within the {self.tokenizer.settings.max_length} tokens the model reads" if cut else ""
            raise InvalidInputError(f"text {index} has no {self._mask.token}{where}; put one where a word is wanted")
        return positions

    def _target_ids(self, targets: Sequence[str]) -> list[int]:
        if isinstance(targets, str) or not targets:
            raise InvalidInputError(f"targets is {targets!r}; give a list of at least one token")
        ids = []
        for target in targets:
            found = self.token_id_of(target)
            if found is None:
                raise InvalidInputError(f"the target {target!r} is not one token of this model")
            ids.append(found)
        return list(dict.fromkeys(ids))

    def _fillings(
        self, ids: Sequence[int], gaps: Sequence[int], logits: FloatArray, top_k: int, allowed: list[int] | None
    ) -> Fillings:
        """logits [gaps, vocabulary] to proposals."""
        single = len(gaps) == 1
        made = []
        for position, scores in zip(gaps, softmax(logits), strict=True):
            candidates = np.arange(len(scores)) if allowed is None else np.asarray(allowed)
            best = candidates[_largest(scores[candidates], top_k)]
            made.append([self._filling(ids, position, int(token), float(scores[token]), single) for token in best])
        return made[0] if single else made

    def _filling(self, ids: Sequence[int], position: int, token: int, score: float, single: bool) -> Filling:
        backend = self.tokenizer.backend
        filled = [token if index == position else other for index, other in enumerate(ids)]
        filled = [other for other in filled if other != self.tokenizer.settings.pad_id]
        # Other gaps are special tokens too, and must stay visible.
        with tokenizing():
            text = backend.decode(filled, skip_special_tokens=single)
            word = backend.decode([token], skip_special_tokens=False)
        return Filling(word, token, score, text)


def _largest(scores: FloatArray, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of the `count` largest scores, largest first, the earlier of equal ones first."""
    count = min(count, len(scores))
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    kept = np.flatnonzero(scores >= threshold)
    return kept[np.argsort(-scores[kept], kind="stable")][:count]
