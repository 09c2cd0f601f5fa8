"""The two parts of an evaluation: one that a search may look at again and again, and one that it does not see."""

from __future__ import annotations

import dataclasses
import random

from onnxpress.runtime.evaluation import Evaluation
from onnxpress.runtime.evaluation.text_generation import Passage

_SEED = 0
_LEAST = 4
_MOST, _MOST_PIECES = 2000, 32
"""Examples to search with, which every trial is scored on, and pieces of text."""
_HELD_OUT = 4
"""How many times as many are held out at most."""
_PIECE = 2000
"""Characters of a piece of text at least: about as many tokens as a decoder's perplexity is computed on at a time."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """An evaluation in two parts that have no example in common."""

    search: Evaluation
    held_out: Evaluation


def split(evaluation: Evaluation) -> Splits | None:
    """Shuffle the examples, always in the same way, and halve them; of very many, only some are used. Texts of decoders
    are cut into pieces first. None where there are too few."""
    if evaluation.task == "text-generation":
        texts = [example.text for example in evaluation.examples if isinstance(example, Passage)]
        pieces = tuple(Passage(piece) for text in texts for piece in _pieces(text))
        evaluation = dataclasses.replace(evaluation, examples=pieces, sha256=f"{evaluation.sha256}:pieces")
    count = len(evaluation.examples)
    if count < _LEAST:
        return None
    order = random.Random(_SEED).sample(range(count), count)
    searched = min(count // 2, _MOST_PIECES if evaluation.task == "text-generation" else _MOST)
    return Splits(
        evaluation.subset(sorted(order[:searched])),
        evaluation.subset(sorted(order[searched : (1 + _HELD_OUT) * searched])),
    )


def _pieces(text: str) -> list[str]:
    """The text cut at line ends."""
    pieces = [""]
    for line in text.splitlines(keepends=True):
        if len(pieces[-1]) >= _PIECE:
            pieces.append("")
        pieces[-1] += line
    if len(pieces) > 1 and len(pieces[-1].split()) < 2:  # nothing to predict
        pieces[-2] += pieces.pop()
    return pieces
