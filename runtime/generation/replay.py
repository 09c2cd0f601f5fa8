"""Runs a decoder graph over tokens that are given: what the gate compares, and what perplexity is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.generation.bindings import FloatArray
from onnxpress.runtime.generation.cache import KeyValueCache
from onnxpress.runtime.generation.decoder import Decoder, layout_of
from onnxpress.runtime.generation.storage import storage_of
from onnxpress.runtime.manifest import GenerationSettings, Tensor
from onnxpress.runtime.verification import Run

if TYPE_CHECKING:
    import onnxruntime

COMPARED = (Tensor("logits", "float", ("batch", "steps", "vocabulary")),)
"""What the gate compares of a decoder: logits after the prompt and after each token that follows it."""

LOGITS_BYTES = 64 * 2**20
"""What the logits of a run over a text may take: a prompt of 512 tokens and a large vocabulary have ten times that."""

Feeds = dict[str, npt.NDArray[np.int64]]


class Replay:
    """A decoder with a cache of its own, which is given back after each use."""

    def __init__(
        self, session: onnxruntime.InferenceSession, settings: GenerationSettings, most_rows: int = 16
    ) -> None:
        self.most_rows = most_rows
        storage = storage_of(session)
        layout = layout_of(session, settings, storage)
        self._decoder = Decoder(session, KeyValueCache(layout, settings.context, most_rows=most_rows, storage=storage))

    def steps(
        self, prompts: Sequence[Sequence[int]], following: Sequence[Sequence[int]], piece: int | None = None
    ) -> Iterator[FloatArray]:
        """Logits after each prompt, then after each of the tokens that follow it, all rows together.

        Args:
            prompts: token ids, at most `most_rows` of them, of any lengths.
            following: of each prompt, equally many.
            piece: run each prompt by itself, so many tokens at a time; None: all together.

        Yields:
            float32 [rows, vocabulary], valid until the next.
        """
        count = len(following[0])
        longest = max(len(prompt) for prompt in prompts) + count
        cache = self._decoder.cache
        cache.require(longest)
        cache.reserve(len(prompts), longest, keep=())
        try:
            yield self._decoder.start(0, prompts) if piece is None else self._in_pieces(prompts, piece)
            for step in range(count):
                yield self._decoder.step(0, [tokens[step] for tokens in following])
        finally:
            self._decoder.release()

    def predictions(self, tokens: Sequence[int], first: int) -> Iterator[FloatArray]:
        """Logits that predict the tokens of a text from the index `first` on, which is at least 1.

        The text is run as a prompt, in pieces whose logits take LOGITS_BYTES at most.

        Yields:
            float32 [tokens of the piece, vocabulary], valid until the next; may be written to.
        """
        read = len(tokens) - 1  # the last is only predicted
        most = max(1, LOGITS_BYTES // (4 * self._decoder.vocabulary))
        cache = self._decoder.cache
        cache.require(read)
        cache.reserve(1, read, keep=())
        start = 0
        try:
            for wanted in range(first - 1, read, most):
                end = min(wanted + most, read)
                yield self._decoder.extend(0, tokens[start:end], last=end - wanted)
                start = end
        finally:
            self._decoder.release()

    def _in_pieces(self, prompts: Sequence[Sequence[int]], piece: int) -> FloatArray:
        last = []
        for row, prompt in enumerate(prompts):
            for start in range(0, len(prompt), piece):
                logits = self._decoder.extend(row, prompt[start : start + piece])
            last.append(logits.copy())
        return np.concatenate(last)


def replay_run(session: onnxruntime.InferenceSession, settings: GenerationSettings) -> Run:
    """A decoder as the gate runs it.

    The inputs of a case: `prompt_ids` int64 [batch, longest], padded on the right; `attention_mask` of the same shape;
    `next_ids` int64 [batch, steps]; `piece` int64 [1], where prompts are run in pieces. The output: `logits` float32
    [batch, 1 + steps, vocabulary].
    """

    def run(feeds: Feeds) -> dict[str, FloatArray]:
        prompts = rows_of(feeds)
        replay = Replay(session, settings, most_rows=len(prompts))
        piece = int(feeds["piece"][0]) if "piece" in feeds else None
        steps = replay.steps(prompts, feeds["next_ids"].tolist(), piece)
        return {"logits": np.stack([logits.copy() for logits in steps], axis=1)}

    return run


def rows_of(feeds: Feeds) -> list[list[int]]:
    """The prompts of a case without padding."""
    lengths = feeds["attention_mask"].sum(axis=1).tolist()
    return [row[:length] for row, length in zip(feeds["prompt_ids"].tolist(), lengths, strict=True)]
