"""The inputs a decoder is verified on: prompts together and alone, long and short, and the steps after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers

from onnxpress.exporter.texts import REAL_TEXTS
from onnxpress.runtime.verification import IntArray

Feeds = dict[str, IntArray]

_STEPS = 6
_LONGEST = 512  # attention over more is slow to check and the same code
_PIECE = 5


def decoder_inputs(backend: tokenizers.Tokenizer, vocabulary: int, context: int) -> list[tuple[str, bool, Feeds]]:
    """Name, whether its rows are real texts, and inputs as `runtime/generation/replay.py` runs them.

    Args:
        backend: the tokenizer.
        vocabulary: token ids the graph takes.
        context: tokens it takes.
    """
    rng = np.random.default_rng(20)
    room = context - _STEPS

    def random(*lengths: int) -> list[list[int]]:
        return [rng.integers(0, vocabulary, min(length, room)).tolist() for length in lengths]

    def case(prompts: Sequence[Sequence[int]], **more: int) -> Feeds:
        return _feeds(prompts, rng.integers(0, vocabulary, (len(prompts), _STEPS)), more)

    texts = [backend.encode(text).ids[:room] or [0] for text in REAL_TEXTS]
    longest = min(context - _STEPS, _LONGEST)
    limit = "up to the context's limit" if longest == context - _STEPS else f"{longest} tokens"
    return [
        ("one real text", True, case(texts[:1])),
        (f"{len(texts)} real texts together", True, case(texts)),
        ("one token", False, case(random(1))),
        ("prompts of 1 to 40 tokens together", False, case(random(40, 1, 17, 9))),
        (f"a prompt in pieces of {_PIECE}", False, case(random(23, 8), piece=_PIECE)),
        (f"a long prompt, {limit}", False, case(random(longest))),
    ]


def _feeds(prompts: Sequence[Sequence[int]], following: IntArray, more: Mapping[str, int]) -> Feeds:
    width = max(len(prompt) for prompt in prompts)
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    feeds = {"prompt_ids": ids, "attention_mask": mask, "next_ids": following.astype(np.int64)}
    return {**feeds, **{name: np.array([value]) for name, value in more.items()}}
