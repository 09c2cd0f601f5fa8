"""One request for text: what it asks for, what it has got so far, and how its caller hears of it.

Choosing, stopping and turning tokens into text are done by what it is made with (sampling.py, stopping.py,
streaming.py); which rows and steps it gets is the scheduler's affair.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.generation.lookup import PromptLookup

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
"""stop: an end token, a stop token or a stop string; length: as many tokens as asked for, or as the context holds."""


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """How likely a chosen token was, and what else might have been chosen."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    """The most likely tokens with their log probabilities, most likely first."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """What one token added to an answer."""

    text: str
    """Empty while a character or what may be a stop string is not complete."""
    token_id: int | None
    """None for text that the end set free."""
    logprob: TokenLogprob | None = None
    """Of the token, where they were asked for."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """A finished answer."""

    text: str
    """Without what ended it."""
    token_ids: tuple[int, ...]
    """All that were chosen, an end token too."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    """For each token, where they were asked for."""
    prompt_tokens: int
    reused_tokens: int
    """Of the prompt's tokens, those whose keys and values were in the cache."""
    others: tuple[Generation, ...] = ()
    """Further answers to the same prompt, where more than one was asked for."""


class Choice(Protocol):
    """A chosen token; see sampling.py."""

    @property
    def token_id(self) -> int: ...  # noqa: D102
    @property
    def logprob(self) -> float: ...  # noqa: D102
    @property
    def alternatives(self) -> Sequence[tuple[int, float]]: ...  # noqa: D102


class Chooser(Protocol):
    """Chooses tokens; see sampling.py."""

    def next(self, logits: npt.NDArray[np.float32]) -> Choice:
        """The next token for logits [vocabulary]."""


class TextMaker(Protocol):
    """Turns chosen tokens into text that may be shown, and knows when to stop."""

    def feed(self, token_id: int) -> tuple[str, bool]:
        """Text that may now be shown, and whether the answer ends."""

    def end(self) -> str:
        """What was held back, when the answer ends for another reason."""


class Request:
    """A request, and the promise of its answer.

    `accept`, `finish` and `fail` belong to the engine's thread; all else may be used by any thread.
    """

    def __init__(
        self,
        prompt: list[int],
        most_new: int,
        chooser: Chooser,
        text: TextMaker,
        *,
        deadline: float | None = None,
        with_logprobs: bool = False,
        lookup: PromptLookup | None = None,
        on_delta: Callable[[Delta], None] | None = None,
        on_done: Callable[[Request], None] | None = None,
    ) -> None:
        """
        Args:
            prompt: at least one token.
            most_new: tokens to choose at most, at least 1.
            chooser: chooses them.
            text: makes text of them.
            deadline: when to stop waiting, in seconds of `time.monotonic()`.
            with_logprobs: keep the log probabilities of the chosen tokens.
            lookup: drafts tokens while it decodes alone.
            on_delta: hears of each token, in the engine's thread. What it raises ends this request.
            on_done: hears of the end, in the engine's thread. Must not raise.
        """
        self.prompt = prompt
        self.most_new = most_new
        self.deadline = deadline
        self.lookup = lookup
        self.token_ids: list[int] = []
        self.reused_tokens = 0
        self.asked = time.monotonic()
        """When it was made; as the two below in seconds of `time.monotonic()`."""
        self.admitted: float | None = None
        """When it stopped waiting for others."""
        self.token_times: list[float] = []
        """When each token was chosen."""
        self._chooser = chooser
        self._text = text
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] | None = [] if with_logprobs else None
        self._on_delta = on_delta
        self._on_done = on_done
        self._done = threading.Event()
        self._outcome: Generation | Exception | None = None

    @property
    def most_tokens(self) -> int:
        """Tokens it may have in the cache; the last one chosen never gets there."""
        return len(self.prompt) + self.most_new - 1

    @property
    def done(self) -> bool:
        """Whether the answer, or the error, is there."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Generation:
        """Wait for the answer.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it is not there yet.
            Exception: what made the request fail.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer within {timeout} seconds")
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def accept(self, logits: npt.NDArray[np.float32]) -> bool:
        """Choose a token. Returns whether the request is done.

        Args:
            logits: float32 [vocabulary], valid during the call.
        """
        choice = self._chooser.next(logits)
        self.token_ids.append(choice.token_id)
        self.token_times.append(time.monotonic())
        logprob = None
        if self._logprobs is not None:
            logprob = TokenLogprob(choice.token_id, choice.logprob, tuple(choice.alternatives))
            self._logprobs.append(logprob)
        shown, stops = self._text.feed(choice.token_id)
        self._show(shown, choice.token_id, logprob)
        if stops:
            self._end("stop")
        elif len(self.token_ids) >= self.most_new:
            self.finish("length")
        return self.done

    def finish(self, reason: FinishReason) -> None:
        """End with what is there, for a reason that is not in the text."""
        try:
            rest = self._text.end()
            if rest:
                self._show(rest, None)
        # Whatever a callback raises is this request's affair.
        except Exception as error:  # noqa: BLE001
            self.fail(error)
        self._end(reason)

    def fail(self, error: Exception) -> None:
        """End without an answer."""
        self._settle(error)

    def _show(self, text: str, token_id: int | None, logprob: TokenLogprob | None = None) -> None:
        self._pieces.append(text)
        if self._on_delta is not None:
            self._on_delta(Delta(text, token_id, logprob))

    def _end(self, reason: FinishReason) -> None:
        logprobs = None if self._logprobs is None else tuple(self._logprobs)
        self._settle(
            Generation(
                "".join(self._pieces), tuple(self.token_ids), reason, logprobs, len(self.prompt), self.reused_tokens
            )
        )

    def _settle(self, outcome: Generation | Exception) -> None:
        if not self._done.is_set():
            self._outcome = outcome
            self._done.set()
            if self._on_done is not None:
                self._on_done(self)
