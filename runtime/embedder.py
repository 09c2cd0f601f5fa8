"""Texts to vectors: the task `feature-extraction`. Pooling and normalisation happen inside the graph."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.batching import SideBySide, plan_batches, tokens_per_batch
from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import Variant
from onnxpress.runtime.session import make_session
from onnxpress.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import onnxruntime
    import tokenizers

FloatArray = npt.NDArray[np.float32]


class Embedder:
    """A sentence embedder served from a bundle. Made by `onnxpress.load`; safe to call from many threads."""

    def __init__(self, bundle: Bundle, variant: Variant, providers: Sequence[str], threads: int) -> None:
        assert bundle.manifest.embedding is not None
        self.bundle = bundle
        self.variant = variant
        self.settings = bundle.manifest.embedding
        self.providers = tuple(providers)
        self.threads = threads
        self.tokenizer = Tokenizer(bundle.path_of(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)
        self._input_names = {tensor.name for tensor in bundle.manifest.inputs}
        self._workers = SideBySide(threads if providers[0] == "CPUExecutionProvider" else 1)
        self._lock = threading.Lock()
        self._path = bundle.model_path(variant)
        # One text is fastest with all threads on each operator; many batches are fastest with one thread each.
        self._wide = self._open(threads)
        self._narrow: onnxruntime.InferenceSession | None = self._wide if threads == 1 else None

    def __call__(self, texts: str | Iterable[str], **options: Any) -> FloatArray:
        """The same as `embed`."""
        return self.embed(texts, **options)

    def embed(
        self, texts: str | Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> FloatArray:
        """Embed texts.

        Args:
            texts: one text or any number of them; longer ones than the model's maximum are truncated.
            prompt_name: a prompt of the model's own (`settings.prompts`) to put before each text; the model's default
                prompt, if it has one, is used when neither is given.
            prompt: a prompt as text.

        Returns:
            float32 array [n, d] in the order of `texts`.

        Raises:
            InvalidInputError: an item is not a usable text, or there is no such prompt.
            ForkError: called in another process than the one that loaded the model.
        """
        self._workers.check_process()
        items = [texts] if isinstance(texts, str) else list(texts)
        prefix = self._prompt(prompt_name, prompt)
        if not items:
            return np.zeros((0, self.settings.dimension), np.float32)
        if prefix:
            items = [prefix + text if isinstance(text, str) else text for text in items]
        encodings = self.tokenizer.encode(items)
        skipped = self.tokenizer.prompt_length(prefix) if prefix and not self.settings.include_prompt else 0
        lengths = [len(encoding) for encoding in encodings]
        batches = plan_batches(lengths, tokens_per_batch(lengths, self._workers.count))
        session = self._wide if len(batches) == 1 else self._narrow_session()

        def run(batch: list[int]) -> FloatArray:
            feeds = self._feeds([encodings[index] for index in batch], skipped)
            vectors: FloatArray = session.run(["sentence_embedding"], feeds)[0]
            return vectors

        vectors = np.empty((len(items), self.settings.dimension), np.float32)
        for batch, result in zip(batches, self._workers.map(run, batches), strict=True):
            vectors[batch] = result
        return vectors

    def close(self) -> None:
        """End the worker threads. The model may be used again; they are then started anew."""
        self._workers.close()

    def _open(self, threads: int) -> onnxruntime.InferenceSession:
        return make_session(self._path, self.variant.session, threads=threads, providers=self.providers)

    def _narrow_session(self) -> onnxruntime.InferenceSession:
        if self.providers[0] != "CPUExecutionProvider":
            return self._wide
        with self._lock:
            if self._narrow is None:
                self._narrow = self._open(threads=1)
            return self._narrow

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            if name is not None:
                raise InvalidInputError("give prompt_name or prompt, not both")
            return prompt
        name = name if name is not None else self.settings.default_prompt_name
        if name is None:
            return ""
        if name not in self.settings.prompts:
            there = ", ".join(map(repr, self.settings.prompts)) or "none"
            raise InvalidInputError(f"the model has no prompt {name!r}; its prompts: {there}")
        return self.settings.prompts[name]

    def _feeds(self, encodings: list[tokenizers.Encoding], skipped: int) -> dict[str, npt.NDArray[np.int64]]:
        """Right-padded graph inputs [batch, sequence]; the first `skipped` tokens stay out of pooling."""
        longest = max(len(encoding) for encoding in encodings)
        shape = (len(encodings), longest)
        ids = np.full(shape, self.tokenizer.settings.pad_id, np.int64)
        mask = np.zeros(shape, np.int64)
        types = np.zeros(shape, np.int64) if "token_type_ids" in self._input_names else None
        for row, encoding in enumerate(encodings):
            size = len(encoding)
            ids[row, :size] = encoding.ids
            mask[row, :size] = 1
            if types is not None:
                types[row, :size] = encoding.type_ids
        feeds = {"input_ids": ids, "attention_mask": mask}
        if types is not None:
            feeds["token_type_ids"] = types
        if "pooling_mask" in self._input_names:
            feeds["pooling_mask"] = mask.copy()
            feeds["pooling_mask"][:, :skipped] = 0
        return feeds
