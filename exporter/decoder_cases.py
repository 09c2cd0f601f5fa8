"""The inputs a decoder is verified on: prompts together and alone, long and short, and the steps after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers

from onnxpress.exporter.texts import REAL_TEXTS
from onnxpress.runtime.encoder import Feeds
from onnxpress.runtime.verification import IntArray

_STEPS = 6
_MANY_STEPS = 16
_LONGEST = 1024  # tokens; attention over more takes long to check and is the same code
_MOST_LOGITS = 2**27  # of a row: the reference computes them after every token, which takes 512 MiB then
_PIECE = 5
_LONG_PIECE = 128  # as the engine fills long prompts


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
        return [rng.integers(0, vocabulary, max(1, min(length, room))).tolist() for length in lengths]

    def case(prompts: Sequence[Sequence[int]], steps: int = _STEPS, **more: int) -> Feeds:
        return _feeds(prompts, rng.integers(0, vocabulary, (len(prompts), steps)), more)

    texts = [backend.encode(text).ids[:room] or [0] for text in REAL_TEXTS]
    total = longest_total(vocabulary, context)
    longest, limit = total - _STEPS, "the context's limit" if total == context else f"{total} tokens"
    many = min(_MANY_STEPS, max(1, context // 2))
    return [
        ("one real text", True, case(texts[:1])),
        (f"{len(texts)} real texts together", True, case(texts)),
        ("one token", False, case(random(1))),
        ("prompts of 1 to 40 tokens together", False, case(random(40, 1, 17, 9))),
        (f"{many} tokens after prompts of 3 and {min(12, context - many)}", False,
         case(random(3, min(12, context - many)), many)),
        (f"a prompt in pieces of {_PIECE}", False, case(random(23, 8), piece=_PIECE)),
        (f"a long prompt and a short one together, up to {limit}", False, case(random(longest, 7))),
        (f"a long prompt in pieces of {_LONG_PIECE}, up to {limit}", False, case(random(longest), piece=_LONG_PIECE)),
    ]  # fmt: skip


def longest_total(vocabulary: int, context: int) -> int:
    """Tokens of the longest row, what follows its prompt included: the whole context where that can be afforded."""
    return min(context, max(_LONGEST // 2, min(_LONGEST, _MOST_LOGITS // vocabulary)))


def _feeds(prompts: Sequence[Sequence[int]], following: IntArray, more: Mapping[str, int]) -> Feeds:
    width = max(len(prompt) for prompt in prompts)
    ids, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    feeds = {"prompt_ids": ids, "attention_mask": mask, "next_ids": following.astype(np.int64)}
    return {**feeds, **{name: np.array([value]) for name, value in more.items()}}
