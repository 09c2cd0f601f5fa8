"""Start and end logits to the best spans of a context: arithmetic alone, no tokenizer and no model.

A context that is too long for a model is read in overlapping windows. Spans are scored and merged as the
question-answering pipeline of transformers 4.57 does it (transformers 5 has none):

1. softmax over a window's start logits and over its end logits, each over the context's tokens and the null token, the
   special token that a model points at when a window holds no answer ([CLS]);
2. a span scores P(start) P(end); each window proposes its best ones;
3. spans of the same text, in whatever case and place, are one answer, whose score is the sum. So the score of a text
   that stands in two windows, or twice in one, can be above 1;
4. the score of no answer is the lowest P(start) P(end) of the null token over the windows.

On purpose otherwise: a span never ends before it starts, is never longer than asked for, and always has characters. The
pipeline gives such spans the score 0 and returns them when it runs out of others. Equal scores are ranked by window,
then by start, then by end; in the pipeline their order is numpy's. Probabilities are float64, so that products of small
ones keep their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.encoder import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A piece of a context that answers a question; or, with an empty text, that there is none."""

    text: str
    """`context[start:end]`."""
    score: float
    """Sum of the probabilities of the spans that have this text; mostly, but not always, below 1."""
    start: int
    """First character in the context."""
    end: int
    """One past the last character in the context."""
    no_answer_score: float
    """What "there is no answer" scores; 0 for a model without a token for that."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What the tokens of one window stand for; every array is [sequence]."""

    in_context: BoolArray
    """The tokens an answer may be made of, in one piece."""
    starts: IntArray
    """First character in the context; without meaning for other tokens."""
    ends: IntArray
    """One past the last character in the context."""
    has_null: bool
    """Whether token 0 is the null token."""

    @property
    def readable(self) -> bool:
        """Whether any token stands for characters of the context."""
        return bool((self.in_context & (self.ends > self.starts)).any())


def best_answers(
    context: str,
    windows: Sequence[Window],
    logits: Sequence[tuple[FloatArray, FloatArray]],
    *,
    top_k: int,
    max_answer_tokens: int,
    allow_no_answer: bool,
    candidates: int,
) -> list[Answer]:
    """The best answers that a context's windows hold.

    Args:
        context: what the windows' characters count in.
        windows: all windows of the context.
        logits: of each window, of starts and of ends, each float32 [sequence].
        top_k: how many answers to return at most.
        max_answer_tokens: how long a span may be.
        allow_no_answer: the empty answer competes with its score.
        candidates: how many spans each window proposes, before equal texts are merged.

    Returns:
        answers, best first; fewer than `top_k` where there are no more.
    """
    found: dict[str, _Merged] = {}
    null_scores = []
    for window, (start_logits, end_logits) in zip(windows, logits, strict=True):
        start, null_start = _probabilities(start_logits, window)
        end, null_end = _probabilities(end_logits, window)
        null_scores.append(null_start * null_end)
        for score, first, last in _best_spans(window, start, end, max_answer_tokens, candidates):
            text = context[first:last]
            merged = found.setdefault(text.lower(), _Merged(text, first, last))
            merged.score += score
    no_answer_score = min(null_scores)
    answers = [Answer(one.text, one.score, one.start, one.end, no_answer_score) for one in found.values()]
    if allow_no_answer:
        answers.append(Answer("", no_answer_score, 0, 0, no_answer_score))
    return sorted(answers, key=lambda answer: -answer.score)[:top_k]  # stable: of equal ones the first that was found


def widen_to_words(starts: IntArray, ends: IntArray, words: IntArray) -> tuple[IntArray, IntArray]:
    """Characters of each token's word, as far as the word lies in the window.

    Args:
        starts: first characters, [sequence].
        ends: ends, [sequence].
        words: each token's word, of which the tokens stand side by side; -1: a token that stays as it is.

    Returns:
        starts and ends, [sequence].
    """
    positions = np.arange(len(words))
    changes = (words[1:] != words[:-1]) | (words[1:] == -1)
    opens, closes = np.ones(len(words), np.bool_), np.ones(len(words), np.bool_)
    opens[1:], closes[:-1] = changes, changes
    first = np.maximum.accumulate(np.where(opens, positions, 0))
    last = np.minimum.accumulate(np.where(closes, positions, len(words))[::-1])[::-1]
    return starts[first], ends[last]


@dataclasses.dataclass(slots=True)
class _Merged:
    """All spans of one text: the place of the first that was found, the score of all."""

    text: str
    start: int
    end: int
    score: float = 0.0


def _probabilities(logits: FloatArray, window: Window) -> tuple[Probabilities, float]:
    """Softmax over the context and the null token: the context's part [tokens of it], and the null token's."""
    allowed = window.in_context.copy()
    if window.has_null:
        allowed[0] = True
    values = np.where(allowed, logits.astype(np.float64), -np.inf)
    powers = np.exp(values - values.max())
    powers /= powers.sum()
    return powers[window.in_context], float(powers[0]) if window.has_null else 0.0


def _best_spans(
    window: Window, start: Probabilities, end: Probabilities, max_tokens: int, count: int
) -> Iterator[tuple[float, int, int]]:
    """Score, first character and end of the `count` best spans, best first. `start`, `end`: [tokens of the context]."""
    tokens = len(start)
    longest = min(max_tokens, tokens)
    # scores[s, n] is of the span of tokens s to s + n: the row order is that of starts, then ends.
    last = np.arange(tokens)[:, None] + np.arange(longest)  # [tokens, longest]
    inside = last < tokens
    last = np.where(inside, last, 0)
    scores = start[:, None] * end[last]
    starts, ends = window.starts[window.in_context], window.ends[window.in_context]
    spans = np.flatnonzero(inside & (ends[last] > starts[:, None]))
    best = spans[np.argsort(-scores.flat[spans], kind="stable")[:count]]
    for index in best:
        first = index // longest
        yield float(scores.flat[index]), int(starts[first]), int(ends[last.flat[index]])
