"""Beam search: the likeliest answers as a whole, in place of the likeliest token each time.

Candidates, scores and the end are those of transformers' `generate(num_beams=...)`. A prompt is searched by itself, in
rows of a cache that is given back afterwards, beside whatever the engine runs. It draws nothing, and knows no texts.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.bindings import FloatArray
from onnxpress.runtime.generation.cache import KeyValueCache
from onnxpress.runtime.generation.checks import number, stop_texts, whole
from onnxpress.runtime.generation.decoder import Decoder
from onnxpress.runtime.generation.sampling import Sampling

_MOST_BEAMS = 64
_LENGTH_PENALTIES = (
    -10,
    10,
    "1 for the mean log probability of a token, above for longer answers, below for shorter",
)
_TAKEN = ("max_new_tokens", "n", "repetition_penalty", "stop_token_ids", "ignore_eos")
"""Fields of `Sampling` that a search heeds."""
_NEUTRAL = {field.name: field.default for field in dataclasses.fields(Sampling)} | {"prompt_lookup": 0}
"""Values that ask for nothing."""


@dataclasses.dataclass(frozen=True)
class Beams:
    """How to search.

    Raises:
        InvalidInputError: a value that cannot be meant.
    """

    num_beams: int
    """Answers that are continued together."""
    length_penalty: float = 1.0
    """An answer's score is the sum of its log probabilities over (tokens ** length_penalty)."""
    early_stopping: bool | Literal["never"] = False
    """True: end with the first `num_beams` answers. False: end when no answer of the present length could be better.
    "never": end when no answer at all could be better."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_beams", whole("num_beams", self.num_beams, 1, _MOST_BEAMS))
        object.__setattr__(self, "length_penalty", number("length_penalty", self.length_penalty, *_LENGTH_PENALTIES))
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InvalidInputError(f"early_stopping is {self.early_stopping!r}; give true, false or 'never'")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Beams, Sampling] | None:
        """What the options of an answer say, where they ask for a search.

        Args:
            options: see `Options` in options.py.
            defaults: of the model.

        Returns:
            how to search, and the rest; None for one beam, which is no search.

        Raises:
            InvalidInputError: an option that cannot be used, or not in a search.
        """
        given = {name: value for name, value in options.items() if value is not None}
        own = {name: given.pop(name) for name in BEAM_OPTIONS if name in given}
        if "num_beams" not in own:
            for name in own:
                raise InvalidInputError(f"{name} is for beam search; give num_beams too, or leave it out")
            return None
        beams = cls(**own)
        if beams.num_beams == 1:
            return None
        if "stop" in given:
            given["stop"] = stop_texts(given["stop"])  # an empty list of any kind asks for nothing
        for name, value in given.items():
            if name not in _TAKEN and value != _NEUTRAL.get(name):
                raise InvalidInputError(
                    f"{name} cannot be combined with num_beams, which takes {', '.join(_TAKEN)}; leave one of them out"
                )
        heeded = {name: value for name, value in given.items() if name in _TAKEN}
        sampling = Sampling.with_defaults(defaults, **heeded, temperature=0.0)
        if sampling.n > beams.num_beams:
            raise InvalidInputError(f"n is {sampling.n}, of {beams.num_beams} beams; give num_beams of at least n")
        return beams, sampling


BEAM_OPTIONS = tuple(field.name for field in dataclasses.fields(Beams))


@dataclasses.dataclass(frozen=True)
class Beam:
    """An answer, or the beginning of one."""

    token_ids: tuple[int, ...]
    score: float
    """Sum of its log probabilities; of a whole answer, over its length as `length_penalty` says."""
    row: int = 0
    """Of the cache, where all of it but the last token is."""


class BeamSearch:
    """Searches with the graph of a decoder. Safe to call from many threads, which wait for each other."""

    def __init__(self, decoder: Decoder) -> None:
        """
        Args:
            decoder: gives the session, and what a cache may take; is not run.
        """
        self._decoder = decoder
        self._lock = threading.Lock()

    def search(
        self,
        prompt: Sequence[int],
        most_new: int,
        beams: Beams,
        end_ids: Sequence[int] = (),
        repetition_penalty: float = 1.0,
    ) -> list[Beam]:
        """The best answers to a prompt, at most `num_beams` of them, the best first.

        Args:
            prompt: at least one token.
            most_new: tokens of an answer at most.
            beams: how to search.
            end_ids: tokens that end an answer.
            repetition_penalty: see `Sampling`; here it changes log probabilities, as in transformers.

        Raises:
            CacheMemoryError: so many rows of that length do not fit the memory allowed.
            InvalidInputError: the session captures CUDA graphs, beside which no other thread may run it.
        """
        if self._decoder.graphs is not None:
            raise InvalidInputError("num_beams cannot be combined with CUDA graphs; load the model without them")
        shared = self._decoder.cache
        cache = KeyValueCache(shared.layout, shared.context, shared.limit_bytes, beams.num_beams, shared.storage)
        capacity = len(prompt) + most_new - 1
        cache.require(capacity, beams.num_beams)
        with self._lock:
            cache.reserve(beams.num_beams, capacity, keep=())
            decoder = Decoder(self._decoder.session, cache)
            return _search(decoder, prompt, most_new, beams, frozenset(end_ids), repetition_penalty)


def _search(
    decoder: Decoder, prompt: Sequence[int], most_new: int, beams: Beams, end_ids: frozenset[int], penalty: float
) -> list[Beam]:
    """`BeamSearch.search` in a cache with room. transformers: GenerationMixin._beam_search."""
    count = beams.num_beams
    keep = max(2, 1 + len(end_ids)) * count  # so many that `count` of them go on, whatever ends
    logits = decoder.extend(0, prompt)
    for row in range(1, count):
        decoder.cache.copy(0, row, len(prompt))
    running, finished = [Beam((), 0.0)], list[Beam]()
    for length in range(1, most_new + 1):
        candidates = _continuations(_log_probabilities(logits, prompt, running, penalty), running, keep)
        ends = [length == most_new or beam.token_ids[-1] in end_ids for beam in candidates]
        finished += [
            dataclasses.replace(beam, score=beam.score / length**beams.length_penalty)
            for beam, ended in zip(candidates[:count], ends, strict=False)
            if ended
        ]
        finished = sorted(finished, key=lambda beam: beam.score, reverse=True)[:count]
        running = [beam for beam, ended in zip(candidates, ends, strict=True) if not ended][:count]
        if not running or (len(finished) == count and not _may_improve(running, finished, length, most_new, beams)):
            break
        decoder.cache.rearrange([beam.row for beam in running], len(prompt))
        logits = decoder.step(0, [beam.token_ids[-1] for beam in running])
    return finished


def _continuations(log_probabilities: npt.NDArray[np.float64], running: Sequence[Beam], keep: int) -> list[Beam]:
    """The best of all beams with all tokens, the best first; log probabilities: [beams, V]."""
    totals = (log_probabilities + np.array([[beam.score] for beam in running])).ravel()
    keep = min(keep, len(totals))
    best = np.argpartition(totals, len(totals) - keep)[-keep:]
    best = best[np.argsort(-totals[best], kind="stable")]
    rows, tokens = np.divmod(best, log_probabilities.shape[1])
    found = zip(rows.tolist(), tokens.tolist(), totals[best].tolist(), strict=True)
    return [Beam((*running[row].token_ids, token), total, row) for row, token, total in found]


def _log_probabilities(
    logits: FloatArray, prompt: Sequence[int], running: Sequence[Beam], penalty: float
) -> npt.NDArray[np.float64]:
    """Of the tokens after each beam, [beams, V]."""
    values = logits[: len(running)].astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    if penalty != 1:
        for row, beam in enumerate(running):
            seen = np.unique([*prompt, *beam.token_ids])
            seen = seen[seen < values.shape[1]]  # more embeddings than logits, in the prompt
            values[row, seen] *= penalty
    return values


def _may_improve(running: Sequence[Beam], finished: Sequence[Beam], length: int, most_new: int, beams: Beams) -> bool:
    """Whether a beam could become better than the worst of the answers, as far as `early_stopping` wants to know."""
    if beams.early_stopping is True:
        return False
    longest = most_new if beams.early_stopping == "never" and beams.length_penalty > 0 else length
    return bool(running[0].score / longest**beams.length_penalty > finished[-1].score)
