"""What an answer must be, for bench/requests.py: within its limits, its text that of its tokens, its grammar kept.

Each function gives sentences about what is wrong, and none where all is right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.random_requests import CHOICES, PATTERN, SCHEMA, Asked
from onnxpress.runtime.generation.replay import Replay
from onnxpress.runtime.generation.requests import Generation

if TYPE_CHECKING:
    from onnxpress.runtime.generation.generator import Generator

NEAR_TIE = 1e-4
"""Two best logits closer than this times the largest magnitude may change places when other kernels run."""


class AnswerChecks:
    """Checks answers of one model."""

    def __init__(self, generator: Generator) -> None:
        assert generator.settings.generation is not None
        self._generator = generator
        self._settings = generator.settings.generation
        self._tokenizer = generator.tokenizer.backend

    def faults(self, asked: Asked, prompt: list[int], answer: Generation) -> Iterator[str]:
        """What is wrong with one answer to one prompt."""
        options, ids = asked.options, list(answer.token_ids)
        room = self._settings.context - len(prompt)
        most = min(room, options["max_new_tokens"])
        if answer.prompt_tokens != len(prompt):
            yield f"{answer.prompt_tokens} tokens of a prompt that has {len(prompt)}"
        if not 0 <= answer.reused_tokens < max(1, len(prompt)):
            yield f"{answer.reused_tokens} reused of {len(prompt)} tokens"
        if len(ids) > most:
            yield f"{len(ids)} new tokens where {most} are allowed"
        if not ids and answer.finish_reason in ("stop", "length"):
            yield f"no tokens, and the end is called {answer.finish_reason}"
        if any(not 0 <= token < self._settings.vocabulary for token in ids):
            yield f"tokens outside the vocabulary: {ids}"
        yield from self._wrong_end(asked, answer, most)
        yield from self._wrong_text(asked, prompt, answer)
        yield from _wrong_logprobs(options.get("logprobs"), answer)
        if asked.constraint is not None and not keeps(asked.constraint, answer):
            yield f"{answer.text!r} ({answer.finish_reason}) does not keep the {asked.constraint}"

    def faults_of_text(self, asked: Asked, text: str) -> Iterator[str]:
        """What is wrong with a text of which no more is known."""
        yield from (f"the stop text {stop!r} is in {text!r}" for stop in _stops(asked.options) if stop in text)

    def encode(self, prompt: str | list[int]) -> list[int]:
        """The token ids of a prompt."""
        ids = list(self._tokenizer.encode(prompt).ids) if isinstance(prompt, str) else prompt
        begin = self._settings.bos_id
        return ids or ([] if begin is None else [begin])

    def _ends(self, options: Mapping[str, Any]) -> set[int]:
        own = () if options.get("ignore_eos") else self._settings.eos_ids
        return {*own, *options.get("stop_token_ids", ())}

    def _wrong_end(self, asked: Asked, answer: Generation, most: int) -> Iterator[str]:
        reason, ids = answer.finish_reason, answer.token_ids
        ends = self._ends(asked.options)
        if any(token in ends for token in ids[:-1]):
            yield f"an end token within {ids}"
        if ids and ids[-1] in ends and reason != "stop":
            yield f"the last token ends the answer, and the end is called {reason}"
        if reason == "length" and len(ids) != most:
            yield f"the end is called length at {len(ids)} of {most} tokens"
        if reason == "stop" and not (ids[-1] in ends or asked.options.get("stop") or asked.constraint):
            yield f"the end is called stop, and nothing stops at {ids[-1]}"
        if reason == "cancelled" and asked.leaves in ("stays", "after the end"):
            yield "cancelled by nobody"
        if reason == "timeout" and asked.options.get("timeout_seconds", math.inf) > 10:
            yield "timed out without a time"

    def _wrong_text(self, asked: Asked, prompt: list[int], answer: Generation) -> Iterator[str]:
        ids = list(answer.token_ids)
        if ids and ids[-1] in self._ends(asked.options):
            ids.pop()
        whole = self._decoded(prompt, ids)
        stops = _stops(asked.options)
        if not any(_cut(text, stops) == answer.text for text in whole):
            yield f"the text is {answer.text!r}, the tokens are {_cut(whole[0], stops)!r}"
        yield from self.faults_of_text(asked, answer.text)

    def _decoded(self, prompt: list[int], ids: list[int]) -> list[str]:
        """The text of new tokens: by themselves, and as what they add to the prompt's, where decoders differ."""
        both, before = self._tokenizer.decode(prompt + ids), self._tokenizer.decode(prompt)
        return [self._tokenizer.decode(ids), *([both[len(before) :]] if both.startswith(before) else [])]

    def differs_from_alone(self, prompt: list[int], token_ids: Sequence[int]) -> str | None:
        """What is wrong with a greedy answer that was made among others: it must have the tokens it has alone, up to
        the first where the two best were as good as equal. Alone, every other one is helped by drafts."""
        options: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": len(token_ids)}
        options["prompt_lookup"] = 8 * (len(prompt) % 2)
        alone = self._generator.generate(prompt, **options)
        for place, (one, other) in enumerate(zip(token_ids, alone.token_ids, strict=True)):
            if one != other:
                tied = self._tied(prompt + list(token_ids[:place]))
                shown = f"token {place} is {one} among others and {other} alone, after {len(prompt)} of a prompt"
                return None if tied <= NEAR_TIE else f"{shown} (the two best differ by {tied:.2g})"
        return None

    def _tied(self, tokens: list[int]) -> float:
        """How far the two best logits after some tokens lie apart, in units of the largest magnitude."""
        replay = Replay(self._generator.engine.decoder.session, self._settings, most_rows=1)
        logits = next(iter(replay.steps([tokens], [[]])))[0].astype(np.float64)
        second, best = np.sort(logits)[-2:]
        return float((best - second) / np.abs(logits).max())


def keeps(constraint: str, answer: Generation) -> bool:
    """Whether a text is what the grammar says, or the beginning of it where it was cut off."""
    text, complete = answer.text, answer.finish_reason == "stop"
    if constraint == "choice":
        return text in CHOICES if complete else any(option.startswith(text) for option in CHOICES)
    if constraint == "regex":
        return bool(re.fullmatch(PATTERN, text)) or (not complete and text == "")
    if not complete:
        return text == "" or text.startswith("{")
    try:
        value = json.loads(text)
    except ValueError:
        return False
    named = isinstance(value, dict) and set(value) == set(SCHEMA["required"])
    return named and isinstance(value["a"], int) and 0 <= value["a"] <= 99 and isinstance(value["b"], bool)


def _wrong_logprobs(wanted: int | None, answer: Generation) -> Iterator[str]:
    if (answer.logprobs is None) != (wanted is None):
        yield f"logprobs {answer.logprobs} where {wanted} were asked for"
    if answer.logprobs is None or wanted is None:
        return
    if [entry.token_id for entry in answer.logprobs] != list(answer.token_ids):
        yield "logprobs of other tokens"
    for entry in answer.logprobs:
        values = [logprob for _, logprob in entry.alternatives]
        if not entry.logprob <= 1e-6 or len(values) != wanted or values != sorted(values, reverse=True):
            yield f"logprobs {entry}"


def _stops(options: Mapping[str, Any]) -> Sequence[str]:
    stops: str | Sequence[str] = options.get("stop") or ()
    return [stops] if isinstance(stops, str) else stops


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the stop text that is complete first."""
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text


def wrong_error(error: BaseException) -> str | None:
    """What is wrong with an error that a bad request gave: it must be one sentence for a person."""
    from onnxpress.runtime.errors import OnnxpressError

    if not isinstance(error, OnnxpressError):
        return f"{type(error).__name__}: {str(error)[:200]}"
    text = str(error)
    return None if 10 < len(text) < 600 and "\n" not in text else f"no sentence: {text[:200]!r}"
