"""The texts that models are timed on: of a few exact lengths for latency, of mixed ones for throughput, prompts for
decoders. The same everywhere, so that figures of two machines can be compared. Times nothing (measuring.py).
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from typing import Any

from onnxpress.runtime.evaluation import read_evaluation
from onnxpress.runtime.generation.rows import LEAST_SHARED
from onnxpress.runtime.generation.timing import POOL, WritingWorkload
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.measuring import Timed, Workload
from onnxpress.runtime.paths import models_folder
from onnxpress.runtime.tokenizer import Tokenizer

_LENGTHS = (16, 64, 256)
_MIXED_TEXTS = 256
_PROMPT_LENGTHS = (16, 128, 512)
_NEW_TOKENS = 64
_FILLER = "the order was sent to the old address and came back after two weeks so we called again"


def make_workload(
    tokenizer: Tokenizer, settings: TaskSettings, texts: Sequence[str] | None
) -> tuple[Timed, dict[str, Any]]:
    """What a model is timed on, and what is said of it under `measurement` in report.json.

    Args:
        tokenizer: of the model.
        settings: of the model's task.
        texts: of an evaluation; None: the sentences this project ships. Decoders get prompts of filler in any case.
    """
    if settings.task == "text-generation":
        return _writing(tokenizer, settings)
    return _reading(tokenizer, settings, own_texts() if texts is None else texts)


def _reading(tokenizer: Tokenizer, settings: TaskSettings, texts: Sequence[str]) -> tuple[Timed, dict[str, Any]]:
    mixed = random.Random(0).sample(texts, min(_MIXED_TEXTS, len(texts)))
    lengths = [len(encoding) for encoding in tokenizer.encode(mixed)]
    sizes = sorted({min(size, settings.tokenizer.max_length) for size in _LENGTHS})
    workload = Workload(short={size: text_of(tokenizer, size) for size in sizes}, mixed=mixed)
    return workload, {
        "texts": len(mixed),
        "tokens_mean": round(sum(lengths) / len(lengths), 1),
        "tokens_max": max(lengths),
    }


def _writing(tokenizer: Tokenizer, settings: TaskSettings) -> tuple[Timed, dict[str, Any]]:
    longest = settings.tokenizer.max_length
    new_tokens = min(_NEW_TOKENS, longest // 4)
    made = prompts_of(tokenizer, sorted({min(size, longest // 2) for size in _PROMPT_LENGTHS}))
    prompts = {max(len(encoding) for encoding in tokenizer.encode(texts)): texts for texts in made}
    after = list(prompts)[len(prompts) // 2]
    return WritingWorkload(prompts, after, new_tokens), {"prompt_tokens": after, "new_tokens": new_tokens}


def own_texts() -> list[str]:
    """The sentences this project ships."""
    return read_evaluation([models_folder() / "sentence_pairs.tsv"], "feature-extraction").texts


def prompts_of(tokenizer: Tokenizer, lengths: Sequence[int]) -> list[list[str]]:
    """POOL prompts for each number of tokens, with as many where that can be. All begin with other tokens, so that
    nothing of one is in the cache for another; a tokenizer that knows hardly any word gives fewer."""

    def count(words: Sequence[str]) -> int:
        return len(tokenizer.encode([" ".join(words)])[0])

    def of_length(opening: Sequence[str], tokens: int) -> str:
        words = [*opening, *itertools.islice(itertools.cycle(filler), tokens)]
        kept = max(3, bisect.bisect_right(range(len(words)), tokens, key=lambda number: count(words[:number])) - 1)
        words = words[:kept]
        while count([*words, "a"]) <= tokens:
            words.append("a")
        return " ".join(words)

    filler = _FILLER.split()
    openings: dict[tuple[int, ...], tuple[str, ...]] = {}
    for opening in itertools.permutations(dict.fromkeys(filler), 3):
        beginning = tuple(tokenizer.encode([" ".join([*opening, *filler])])[0].ids[:LEAST_SHARED])
        openings.setdefault(beginning, opening)
        if len(openings) == POOL * len(lengths):
            break
    chosen = list(openings.values())
    return [[of_length(opening, size) for opening in chosen[i :: len(lengths)]] for i, size in enumerate(lengths)]


def text_of(tokenizer: Tokenizer, tokens: int) -> str:
    """A text of as many tokens as asked for, or the nearest below that whole words can make."""
    words, chosen = _FILLER.split(), list[str]()
    while len(chosen) < tokens:
        chosen.append(words[len(chosen) % len(words)])
    while len(chosen) > 1 and len(tokenizer.encode([" ".join(chosen)])[0]) >= tokens:
        if len(tokenizer.encode([" ".join(chosen[:-1])])[0]) < tokens:
            break
        chosen.pop()
    return " ".join(chosen)
