"""Perplexity of a text: exp of the mean negative log probability that a model gives to each token, given those before.

A text is read in windows of `window` tokens that begin `stride` tokens apart; each token counts once, in the first
window where a token stands before it. No token is put before the text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.checks import valid_text
from onnxpress.runtime.generation.replay import Replay
from onnxpress.runtime.tokenizer_checks import tokenizing

if TYPE_CHECKING:
    import tokenizers

WINDOW = 512
"""Tokens of a window, where the model takes as many. Each begins with the last token of the one before it."""

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Window:
    """Some tokens of a text, and from which one on they count."""

    tokens: tuple[int, ...]
    first: int
    """Index in `tokens`, at least 1."""


LogProbabilities = Callable[[Sequence[Window]], Sequence[Array]]
"""For each window, the natural log probabilities of its tokens from `first` on."""


def windows(tokens: Sequence[int], window: int, stride: int) -> list[Window]:
    """Cut a text of at least two tokens into windows."""
    made = []
    counted = 1
    for start in range(0, len(tokens), stride):
        end = min(start + window, len(tokens))
        if end > counted:
            made.append(Window(tuple(tokens[start:end]), counted - start))
            counted = end
        if end == len(tokens):
            break
    return made


def log_likelihoods_of(
    texts: str | Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    context: int,
    vocabulary: int,
    log_probabilities: LogProbabilities,
) -> list[tuple[float, int]]:
    """Log likelihoods of texts, each read by itself, special tokens not added.

    Args:
        texts: one or several, of at least two tokens together.
        tokenizer: of the model; what it says about the length of texts does not count.
        context: tokens the model takes.
        vocabulary: tokens the model knows; tokenizers may have more.
        log_probabilities: what the model gives.

    Returns:
        of each window, in order: the log likelihood of its tokens that count, and how many these are.

    Raises:
        InvalidInputError: what was given is no text, or has a token that the model does not know.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Iterable):
        raise InvalidInputError(f"texts are of type {type(texts).__name__}; give a text or a list of them")
    window = min(context, WINDOW)
    parts: list[Window] = []
    for index, text in enumerate(texts):
        ids = encode_whole(tokenizer, valid_text(f"text {index}", text))
        if (highest := max(ids, default=0)) >= vocabulary:
            raise InvalidInputError(
                f"text {index} has the token {highest} ({tokenizer.id_to_token(highest)!r}); the model knows 0 to "
                f"{vocabulary - 1}, so leave it out of the text"
            )
        parts += windows(ids, window, max(1, window - 1))
    return [(float(values.sum()), len(values)) for values in log_probabilities(parts)]


def perplexity_from(likelihoods: Sequence[tuple[float, int]]) -> float:
    """exp(-mean log probability) over the tokens that count, from what `log_likelihoods_of` gives; infinite where that
    is more than a float holds.

    Raises:
        InvalidInputError: no token counts.
    """
    tokens = sum(count for _, count in likelihoods)
    if not tokens:
        raise InvalidInputError("perplexity needs texts of at least two tokens; these have fewer")
    try:
        return math.exp(-sum(value for value, _ in likelihoods) / tokens)
    except OverflowError:
        return math.inf


def encode_whole(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """All token ids of a text, special tokens not added, whatever the tokenizer says about its length."""
    limits = tokenizer.truncation
    tokenizer.no_truncation()
    try:
        with tokenizing():
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids
    finally:
        if limits is not None:
            tokenizer.enable_truncation(**limits)


def log_probabilities_of(replay: Replay) -> LogProbabilities:
    """What a decoder gives, a window at a time."""

    def run(parts: Sequence[Window]) -> list[Array]:
        return [np.concatenate(list(_of_window(part))) for part in parts]

    def _of_window(part: Window) -> Iterator[Array]:
        start = part.first
        for logits in replay.predictions(part.tokens, start):
            yield _log_softmax_at(logits, np.array(part.tokens[start : start + len(logits)]))
            start += len(logits)

    return run


def _log_softmax_at(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64]) -> Array:
    """log softmax of logits [positions, vocabulary], which are changed, at one token of each position."""
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(tokens)), tokens].astype(np.float64)
    result: Array = chosen - np.log(np.exp(logits, out=logits).sum(axis=1, dtype=np.float64))
    return result
