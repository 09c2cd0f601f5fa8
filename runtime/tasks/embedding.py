"""Texts to vectors: the task `feature-extraction`. Pooling and normalisation happen inside the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onnxpress.runtime.encoder import Encoder, FloatArray
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tasks.base import TaskModel, listed, texts_only
from onnxpress.runtime.tasks.steps import Steps, Work, in_steps
from onnxpress.runtime.token_sequences import Encoded
from onnxpress.runtime.tokenizer import Tokenizer


class Embedder(TaskModel):
    """A sentence embedder."""

    needs = "embedding"

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        super().__init__(encoder, tokenizer, settings)
        assert settings.embedding is not None
        self.embedding = settings.embedding

    def __call__(self, texts: str | Iterable[str], **options: Any) -> FloatArray:
        """The same as `embed`."""
        return self.embed(texts, **options)

    @in_steps
    def embed(
        self, texts: str | Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> Steps[FloatArray]:
        """Embed texts.

        Args:
            texts: one text or any number of them; longer ones than the model's maximum are truncated.
            prompt_name: a prompt of the model's own (`embedding.prompts`) to put before each text; the model's default
                prompt, if it has one, is used when neither is given.
            prompt: a prompt as text.

        Returns:
            float32 array [n, d] in the order of `texts`.

        Raises:
            InvalidInputError: an item is not a usable text, or there is no such prompt.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        items = texts_only(texts)
        prefix = self._prompt(prompt_name, prompt)
        if not items:
            return np.zeros((0, self.embedding.dimension), np.float32)
        if prefix:
            items = [prefix + text for text in items]
        encodings = self.tokenizer.encode_packed(items)
        skipped = self.tokenizer.prompt_length(prefix) if prefix and not self.embedding.include_prompt else 0
        return (yield from self._vectors(encodings, skipped))

    @in_steps
    def embed_tokens(self, sequences: Iterable[Sequence[int]]) -> Steps[FloatArray]:
        """Embed texts that are tokens already. No prompt is put before them, not even the model's default one.

        Args:
            sequences: for each text its token ids, of the bundle's own tokenizer; special tokens are added unless they
                are there. Longer ones than the model's maximum are truncated.

        Returns:
            float32 array [n, d] in the order of `sequences`: for the tokens of a text what `embed` gives for the text.

        Raises:
            InvalidInputError: a sequence is empty, or has an id that the tokenizer does not know.
            ForkError: called in another process than the one that loaded the model.
        """
        self.encoder.check_process()
        encodings = self.tokenizer.encode_ids(listed("sequences", sequences, "a list of lists of token ids"))
        if not encodings:
            return np.zeros((0, self.embedding.dimension), np.float32)
        return (yield from self._vectors(encodings, 0))

    def _vectors(self, encodings: Sequence[Encoded], skipped: int) -> Steps[FloatArray]:
        """Vectors of at least one text, of whose tokens the first `skipped` are not pooled."""
        extra: dict[str, list[list[int]]] = {}
        if "pooling_mask" in self.encoder.input_names:
            extra["pooling_mask"] = [_pooling_mask(len(encoding), skipped) for encoding in encodings]
        rows = yield Work(encodings, extra)
        return np.stack([row["sentence_embedding"] for row in rows])

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            if name is not None:
                raise InvalidInputError("give prompt_name or prompt, not both")
            return prompt
        name = name if name is not None else self.embedding.default_prompt_name
        if name is None:
            return ""
        if name not in self.embedding.prompts:
            there = ", ".join(map(repr, self.embedding.prompts)) or "none"
            raise InvalidInputError(f"the model has no prompt {name!r}; its prompts: {there}")
        return self.embedding.prompts[name]


def _pooling_mask(length: int, skipped: int) -> list[int]:
    """1 for tokens that are pooled, 0 for the prompt's at the front."""
    return [0] * min(skipped, length) + [1] * max(0, length - skipped)
