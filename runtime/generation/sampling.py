"""The next token from the logits: greedy or drawn, with the penalties and cuts of transformers. Numpy only.

Glossary: V vocabulary of the model.

Order and sets are those of transformers' logits processors: repetition penalty, the presence and frequency penalties of
the OpenAI API, what a grammar allows, temperature, top-k, top-p, min-p. Each request has a `Sampler` with a random
generator of its own, so its tokens do not depend on what else is in the batch. Knows nothing of texts (streaming.py)
and of when to stop (stopping.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.checks import flag, number, stop_texts, token_ids, whole
from onnxpress.runtime.generation.drawing import candidates, draw, likeliest, require_finite

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

# Least, most and advice; what is outside leaves the range of float32 somewhere, or is a slip.
_TEMPERATURES = (1e-6, 1e4, "0 (always the likeliest token), or a number from 1e-6 to 10000")
_REPETITION_PENALTIES = (0.01, 100, "1 for none, or a number from 0.01 to 100")
_PENALTIES = (-100, 100, "0 for none, or a number from -100 to 100")
_MOST_ALTERNATIVES = 1_000
_MOST_ANSWERS = 128  # as in the OpenAI API


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop.

    Raises:
        InvalidInputError: a value that cannot be meant; the message gives it and what to give instead.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: always the likeliest token, and the four cuts below do nothing. Above: tokens are drawn."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens (and those as likely as the last of them); 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; 1: from all."""
    min_p: float = 0.0
    """Draw from tokens at least this times as likely as the likeliest; 0: from all."""
    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and the output less likely; 1: off (arXiv 1909.05858, section 4.1)."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it is in the output."""
    seed: int | None = None
    """The same seed gives the same tokens; None: others each time."""
    stop: Sequence[str] = ()
    """Texts that end the output, which is cut before them. One text may be given as a str."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the output, besides those that end it for every request of the model."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence token."""
    logprobs: int | None = None
    """Give the log-probability of each token, and of so many of the likeliest tokens at its place."""
    n: int = 1
    """Outputs for each prompt."""

    def __post_init__(self) -> None:
        values = {
            "max_new_tokens": whole("max_new_tokens", self.max_new_tokens, 1),
            "temperature": number("temperature", self.temperature, *_TEMPERATURES, zero=True),
            "top_k": whole("top_k", self.top_k, 0, advice="0 to draw from all tokens, or a number of tokens"),
            "top_p": number("top_p", self.top_p, 1e-9, 1, "1 to draw from all tokens, or a number between 0 and 1"),
            "min_p": number("min_p", self.min_p, 0, 1, "0 to draw from all tokens, or a number up to 1"),
            "repetition_penalty": number("repetition_penalty", self.repetition_penalty, *_REPETITION_PENALTIES),
            "presence_penalty": number("presence_penalty", self.presence_penalty, *_PENALTIES),
            "frequency_penalty": number("frequency_penalty", self.frequency_penalty, *_PENALTIES),
            "seed": None if self.seed is None else whole("seed", self.seed, 0),
            "stop": stop_texts(self.stop),
            "stop_token_ids": token_ids(self.stop_token_ids),
            "ignore_eos": flag("ignore_eos", self.ignore_eos),
            "logprobs": None if self.logprobs is None else whole("logprobs", self.logprobs, 0, _MOST_ALTERNATIVES),
            "n": whole("n", self.n, 1, _MOST_ANSWERS),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def plain(self) -> bool:
        """Whether `greedy` says all: neither penalties nor log-probabilities change or add anything."""
        return self.greedy and not self.penalises and self.logprobs is None

    @property
    def penalises(self) -> bool:
        """Whether the logits depend on earlier tokens through a penalty."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @classmethod
    def with_defaults(cls, defaults: Mapping[str, Any], **given: Any) -> Sampling:
        """What a caller gave, and for the rest what the model's `generation_config.json` says.

        A temperature that nobody gave is 0 unless `do_sample` is true in the defaults or the caller gave `top_k`,
        `top_p` or `min_p` that cut anything; then it is the defaults', or 1. None counts as not given.

        Raises:
            InvalidInputError: a name or a value that is none; the message gives it.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        for name in given:
            if name not in names:
                raise InvalidInputError(f"unknown option {name!r}; known are {', '.join(sorted(names))}")
        kept = {name: defaults[name] for name in _FROM_CONFIG if defaults.get(name) is not None}
        given = {name: value for name, value in given.items() if value is not None}
        cuts = any(given.get(name, neutral) != neutral for name, neutral in (("top_k", 0), ("top_p", 1), ("min_p", 0)))
        draws = bool(defaults.get("do_sample")) or cuts
        kept["temperature"] = kept.get("temperature", 1.0) if draws else 0.0
        return cls(**kept | given)


_FROM_CONFIG = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Choice(NamedTuple):
    """A chosen token."""

    token_id: int
    logprob: float = math.nan
    """Natural logarithm of the probability the model gave it, before penalties and temperature; NaN where it was not
    asked for."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place with their log-probabilities, the best first."""


class Guide(Protocol):
    """What limits the tokens of a request, such as a grammar (constraints.py)."""

    def mask(self) -> BoolArray:
        """Which tokens may come next: bool [V]."""

    def commit(self, token_id: int) -> None:
        """A token was chosen."""


def greedy(logits: FloatArray) -> IntArray:
    """The likeliest token of each row; of equals the one with the lowest id.

    Args:
        logits: float32 [B, V].

    Returns:
        int64 [B].

    Raises:
        OnnxpressError: a row has no finite maximum.
    """
    tokens: IntArray = logits.argmax(axis=1)
    tops = logits[np.arange(len(tokens)), tokens]  # NaN counts as the maximum
    if not np.isfinite(tops).all():
        require_finite(float(tops[~np.isfinite(tops)][0]))
    return tokens


class Sampler:
    """Chooses the tokens of one request, in order. One thread uses it at a time."""

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int] = (), index: int = 0, guide: Guide | None = None
    ) -> None:
        """
        Args:
            sampling: of the request.
            prompt_ids: tokens of the prompt, for the repetition penalty.
            index: which of the `n` outputs of the prompt this is; each draws other tokens.
            guide: limits the tokens, and is told of each that was chosen.
        """
        self.sampling = sampling
        self._guide = guide
        self._penalties = _Penalties(sampling, prompt_ids) if sampling.penalises else None
        spawn_key = (index,) if index else ()
        sequence = np.random.SeedSequence(sampling.seed, spawn_key=spawn_key)
        self._random = np.random.Generator(np.random.PCG64(sequence))

    def next(self, logits: FloatArray) -> Choice:
        """Choose a token, which counts as part of the output from here on.

        Args:
            logits: float32 [V]; not changed and not kept.

        Raises:
            OnnxpressError: no token has a finite logit, or one is NaN or infinite.
        """
        scores = self._scores(logits)
        if self.sampling.greedy:
            token = int(scores.argmax())
            require_finite(float(scores[token]))
        else:
            ids, weights = self._candidates(scores)
            place = draw(weights, self._random.random())
            token = place if ids is None else int(ids[place])
        if self._penalties is not None:
            self._penalties.record(token)
        if self._guide is not None:
            self._guide.commit(token)
        count = self.sampling.logprobs
        return Choice(token) if count is None else _with_logprobs(logits, token, count)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """What `next` would draw from: float32 [V] with sum 1. Chooses nothing. Errors as there."""
        scores = self._scores(logits)
        result = np.zeros(len(scores), np.float32)
        if self.sampling.greedy:
            result[scores.argmax()] = 1
            return result
        ids, weights = self._candidates(scores)
        result[slice(None) if ids is None else ids] = weights / weights.sum()
        return result

    def _scores(self, logits: FloatArray) -> FloatArray:
        scores = logits if self._penalties is None else self._penalties.apply(logits)
        return scores if self._guide is None else np.where(self._guide.mask(), scores, np.float32(-np.inf))

    def _candidates(self, scores: FloatArray) -> tuple[IntArray | None, FloatArray]:
        sampling = self.sampling
        return candidates(
            scores,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )


class _Penalties:
    """Which tokens were seen and how often, in arrays that grow with the output."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        prompt = dict.fromkeys(prompt_ids) if sampling.repetition_penalty != 1 else {}
        self._places = {token: place for place, token in enumerate(prompt)}
        self._ids = np.fromiter(self._places, np.int64, len(self._places))
        self._counts = np.zeros(len(self._ids), np.float32)  # in the output

    def record(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place >= len(self._ids):
            room = np.zeros(max(64, len(self._ids)), np.int64)
            self._ids = np.concatenate([self._ids, room])
            self._counts = np.concatenate([self._counts, room.astype(np.float32)])
        self._ids[place] = token
        self._counts[place] += 1

    def apply(self, logits: FloatArray) -> FloatArray:
        """A changed copy of `logits` [V]."""
        sampling = self._sampling
        ids, counts = self._ids[: len(self._places)], self._counts[: len(self._places)]
        if len(ids) and int(ids.max()) >= len(logits):  # more embeddings than logits, in the prompt
            counts, ids = counts[ids < len(logits)], ids[ids < len(logits)]
        scores = logits.copy()
        seen = scores[ids]
        if sampling.repetition_penalty != 1:
            penalty = np.float32(sampling.repetition_penalty)
            seen = np.where(seen < 0, seen * penalty, seen / penalty)
        seen -= np.float32(sampling.presence_penalty) * (counts > 0) + np.float32(sampling.frequency_penalty) * counts
        scores[ids] = seen
        return scores


def _with_logprobs(logits: FloatArray, token: int, count: int) -> Choice:
    top = logits.max()
    log_sum = float(top) + math.log(float(np.exp(logits - top).sum(dtype=np.float64)))
    best: tuple[tuple[int, float], ...] = ()
    if count:
        ids = likeliest(logits, min(count, len(logits)))
        order = np.lexsort((ids, -logits[ids]))[:count]
        best = tuple((int(place), float(logits[place]) - log_sum) for place in ids[order])
    return Choice(token, float(logits[token]) - log_sum, best)
