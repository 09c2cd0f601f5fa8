"""What a caller asks for, checked and made ready: for each answer what it takes to make a request of it.

Puts together what one answer needs (sampling.py, stopping.py, constraints.py, lookup.py). Knows nothing of how prompts
became tokens (prompts.py) and of who waits for the answer (streams.py).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.beams import Beams
from onnxpress.runtime.generation.checks import time_allowed, whole
from onnxpress.runtime.generation.constraints import Constraint, Grammar, Grammars
from onnxpress.runtime.generation.engine import Engine
from onnxpress.runtime.generation.lookup import MOST_DRAFTED, PromptLookup
from onnxpress.runtime.generation.options import BEYOND_SAMPLING, Options, check_names
from onnxpress.runtime.generation.prompts import Prompts
from onnxpress.runtime.generation.requests import Delta, Request
from onnxpress.runtime.generation.sampling import Sampler, Sampling
from onnxpress.runtime.generation.stopping import AnswerText, StopTracker
from onnxpress.runtime.generation.streaming import Detokenizer
from onnxpress.runtime.manifest import GenerationSettings

_TOGETHER = 16
"""Tokens whose text is made at a time where nobody reads it before the end: less work than one by one, and so few that
others in the batch need not wait for it."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An answer that may be asked for: everything about it is checked. Good for one request."""

    prompt: list[int]
    most_new: int
    """Tokens of the answer at most."""
    make: Callable[[Callable[[Delta], None] | None, Callable[[Request], None] | None], Request]
    """Makes the request, which tells these two of each token and of the end. Its time begins then."""


class _Beyond(NamedTuple):
    """Options of an answer that are no field of `Sampling`."""

    timeout: float | None
    """In seconds."""
    drafted: int
    grammar: Grammar | None


class Preparing:
    """Prepares answers of a model. Safe to use from many threads."""

    most_tokens: int | None = None
    """Tokens of prompts and answers that one call may have; None for any number."""

    def __init__(self, engine: Engine, prompts: Prompts, settings: GenerationSettings) -> None:
        """
        Args:
            engine: the requests are for.
            prompts: with the tokenizer of the model.
            settings: of the model.
        """
        self._engine = engine
        self._settings = settings
        self._grammars = Grammars(prompts.tokenizer, settings.eos_ids, settings.vocabulary)
        self.detokenizer = Detokenizer(prompts.tokenizer)

    def limited(self, most_tokens: int | None) -> Preparing:
        """The same with a limit of its own."""
        other = copy.copy(self)
        other.most_tokens = most_tokens
        return other

    def answers(self, prompts: Sequence[list[int]], options: Options) -> list[Prepared]:
        """The answers to prompts: `n` to the first, `n` to the second.

        Raises:
            InvalidInputError: a prompt or an option cannot be used, or all is more than one call may have.
            CacheMemoryError: an answer of that length does not fit the memory allowed.
        """
        if Beams.from_options(options, self._settings.defaults) is not None:
            raise InvalidInputError(
                "num_beams cannot be combined with a stream or an event loop, for a search runs in the caller's thread "
                "and chooses at the end; use generate(), in an event loop with asyncio.to_thread"
            )
        sampling = self._sampling(options)
        beyond = self._beyond(options)
        prepared = [self._prepare(prompt, sampling, beyond, index) for prompt in prompts for index in range(sampling.n)]
        self.check_tokens(sum(len(each.prompt) + each.most_new for each in prepared))
        return prepared

    def one(self, prompt: list[int], options: Options) -> Prepared:
        """The same for one answer to one prompt."""
        prepared = self.answers([prompt], options)
        if len(prepared) != 1:
            raise InvalidInputError(f"n is {len(prepared)}; a stream is one answer: leave n out, or use generate()")
        return prepared[0]

    def check_tokens(self, tokens: int) -> None:
        """
        Raises:
            InvalidInputError: a call may not have so many.
        """
        if self.most_tokens is not None and tokens > self.most_tokens:
            raise InvalidInputError(
                f"prompts and answers may have {tokens:,} tokens together, {self.most_tokens:,} are allowed; ask for "
                "fewer tokens, or less at once"
            )

    def answer_text(
        self, prompt: list[int], sampling: Sampling, guide: Constraint | None = None, *, streamed: bool = True
    ) -> AnswerText:
        """What makes the text of an answer, and knows when it stops. `streamed`: it is read token by token."""
        tracker = StopTracker(
            sampling, eos_ids=self._settings.eos_ids, prompt_tokens=len(prompt), context=self._engine.context
        )
        together = 1 if streamed or sampling.stop else _TOGETHER
        return AnswerText(tracker, self.detokenizer.stream(after=prompt), guide, together)

    def _sampling(self, options: Options) -> Sampling:
        check_names(options)
        given = {name: value for name, value in options.items() if name not in BEYOND_SAMPLING}
        return Sampling.with_defaults(self._settings.defaults, **given)

    def _beyond(self, options: Options) -> _Beyond:
        """What goes beyond `Sampling`, checked also where there is no prompt."""
        timeout = time_allowed(options.get("timeout_seconds"))
        drafted = options.get("prompt_lookup")
        drafted = 0 if drafted is None else whole("prompt_lookup", drafted, 0, MOST_DRAFTED)
        grammar = options.get("grammar")
        if grammar is not None:
            self._grammars.check(grammar)
        return _Beyond(timeout, drafted, grammar)

    def _prepare(self, prompt: list[int], sampling: Sampling, beyond: _Beyond, index: int) -> Prepared:
        """
        Args:
            prompt: token ids.
            sampling: with the defaults of the model.
            beyond: what goes beyond it.
            index: of the answers to the same prompt.
        """
        most_new = self._engine.room_for(prompt, sampling.max_new_tokens)
        guide = None if beyond.grammar is None else self._grammars.start(beyond.grammar)
        timeout, drafted = beyond.timeout, beyond.drafted

        def make(on_delta: Callable[[Delta], None] | None, on_done: Callable[[Request], None] | None) -> Request:
            return Request(
                prompt,
                most_new,
                Sampler(sampling, prompt, index, guide),
                self.answer_text(prompt, sampling, guide, streamed=on_delta is not None),
                deadline=None if timeout is None else time.monotonic() + timeout,
                with_logprobs=sampling.logprobs is not None,
                lookup=PromptLookup(drafted) if drafted and sampling.greedy else None,
                on_delta=on_delta,
                on_done=on_done,
            )

        return Prepared(prompt, most_new, make)
