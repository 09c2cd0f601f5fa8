"""Prompts of all kinds to token ids: never cut, and refused in a sentence where they cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.checks import valid_text
from onnxpress.runtime.manifest import GenerationSettings
from onnxpress.runtime.tokenizer import MAX_TEXT_CHARACTERS
from onnxpress.runtime.tokenizer_checks import tokenizing

if TYPE_CHECKING:
    import tokenizers

Prompt = str | Sequence[int]
"""A text, or token ids that are used as they are."""

_CHARACTERS_PER_TOKEN = 16  # of the context: a longer text is refused before it is tokenized


class Prompts:
    """Encodes prompts for a model. Safe to use from many threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: GenerationSettings) -> None:
        """
        Args:
            tokenizer: of the model; not changed.
            settings: for the context and the first token.
        """
        import tokenizers

        with tokenizing():
            self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
        self._settings = settings
        self._most_characters = max(MAX_TEXT_CHARACTERS, _CHARACTERS_PER_TOKEN * settings.context)

    def encode(self, prompt: Prompt, *, rendered: bool = False) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: a text or token ids.
            rendered: the text has its special tokens already, as chat templates write them.

        Raises:
            InvalidInputError: no text or token ids, or an empty prompt for a model without a first token.
        """
        ids = self._encode_text(prompt, rendered) if isinstance(prompt, str) else _checked_ids(prompt)
        if not ids and self._settings.bos_id is not None:
            return [self._settings.bos_id]
        if not ids:
            raise InvalidInputError("the prompt is empty, and the model has no token to begin a text with; give a text")
        return ids

    def _encode_text(self, text: str, rendered: bool) -> list[int]:
        if len(text) > self._most_characters:
            raise InvalidInputError(
                f"the prompt has {len(text):,} characters, the limit is {self._most_characters:,}; shorten it (the "
                f"model's context is {self._settings.context:,} tokens)"
            )
        valid_text("the prompt", text)
        with tokenizing():
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not rendered).ids
        return ids


def is_one(prompts: Any) -> bool:
    """Whether what was given is one prompt rather than several: a text, or at least one token id.

    Raises:
        InvalidInputError: it is neither one nor several.
    """
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1 and prompts.dtype.kind in "iu"
    if not isinstance(prompts, Sequence):
        raise InvalidInputError(
            f"prompts are of type {type(prompts).__name__}; give a text, token ids, or a list of them"
        )
    return len(prompts) > 0 and isinstance(prompts[0], (int, np.integer))


def several(prompts: Any) -> Iterable[Any]:
    """Prompts that are to be in a list.

    Raises:
        InvalidInputError: they are not.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Iterable):
        raise InvalidInputError(
            f"prompts are of type {type(prompts).__name__}; give a list of them, each a text or token ids"
        )
    return prompts


def known_ids(token_ids: Any, vocabulary: int) -> list[int]:
    """Token ids that a tokenizer can be asked about.

    Args:
        token_ids: as somebody gave them.
        vocabulary: tokens that the model knows.

    Raises:
        InvalidInputError: they are none, or not the model's.
    """
    values = _plain(token_ids)
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidInputError(f"token_ids are of type {type(token_ids).__name__}; give a list of token ids")
    ids = list(values)
    for place, token in enumerate(ids):
        if not _is_whole(token) or not 0 <= token < vocabulary:
            raise InvalidInputError(
                f"the token {token!r} at place {place} is none of the model's; give ids from 0 to {vocabulary - 1}"
            )
    return ids


def _checked_ids(prompt: Any) -> list[int]:
    values = _plain(prompt)
    if not isinstance(values, Sequence) or isinstance(values, bytes):
        raise InvalidInputError(f"a prompt is of type {type(prompt).__name__}; give a text or token ids")
    for place, value in enumerate(values):
        if not _is_whole(value):
            raise InvalidInputError(
                f"the prompt has {value!r} of type {type(value).__name__} at place {place}; give a text or token ids"
            )
    return [int(value) for value in values]


def _plain(values: Any) -> Any:
    return values.tolist() if isinstance(values, np.ndarray) else values


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
