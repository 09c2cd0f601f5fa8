"""When an answer ends, and how much of its text may be shown until then.

A stop text may lie across several tokens, so what could become one is held back; nothing of a stop text is ever shown.
Knows nothing of how text is made of tokens (streaming.py) and of who waits for it (requests.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from onnxpress.runtime.generation.sampling import Sampling
from onnxpress.runtime.generation.streaming import TextStream

EndReason = Literal["stop", "length"]
"""stop: a stop token, a stop text, or the end of the grammar; length: as many tokens as allowed."""


class StopTexts:
    """Finds the first of some texts in a text that comes in pieces.

    The first is the one that is complete first, of those the one that starts first; so the result does not depend on
    where the pieces are cut.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What may be shown now: nothing of a stop text, and nothing that could become one."""
        if self.found or not self._texts:
            return "" if self.found else piece
        text = self._held + piece
        place = self._first(text)
        if place is not None:
            self.found, self._held = True, ""
            return text[:place]
        keep = self._undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """What was held back, as no more comes."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        """Where the first stop text in `text` starts."""
        found = ((place + len(stop), place) for stop in self._texts if (place := text.find(stop)) >= 0)
        return min(found, default=(0, None))[1]

    def _undecided(self, text: str) -> int:
        """Where the part begins that could become a stop text."""
        earliest = len(text)
        for stop in self._texts:
            place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= place < earliest:
                if stop.startswith(text[place:]):
                    earliest = place
                    break
                place = text.find(stop[0], place + 1)
        return earliest


class StopTracker:
    """Watches the tokens and the text of one answer. One thread uses it at a time."""

    def __init__(
        self, sampling: Sampling, *, eos_ids: Iterable[int] = (), prompt_tokens: int = 0, context: int | None = None
    ) -> None:
        """
        Args:
            sampling: its stop texts, stop tokens and most tokens.
            eos_ids: tokens that end an answer of the model, unless `sampling.ignore_eos`.
            prompt_tokens: tokens of the prompt.
            context: tokens of prompt and answer together at most; None for no limit.
        """
        self._stop_ids = frozenset(sampling.stop_token_ids) | frozenset(() if sampling.ignore_eos else eos_ids)
        self._stop_texts = StopTexts(sampling.stop)
        self._most = sampling.max_new_tokens
        if context is not None:
            self._most = min(self._most, context - prompt_tokens)
        self._tokens = 0
        self.reason: EndReason | None = None
        """Why the answer has ended; None while it goes on."""

    def stops(self, token_id: int) -> bool:
        """Whether the token ends the answer; its own text is then no part of it."""
        return token_id in self._stop_ids

    def feed(self, token_id: int, new_text: str) -> tuple[str, EndReason | None]:
        """Take a token and the text that it made certain (for a token that `stops`, give an empty one).

        Returns:
            text that may be shown, and why the answer ends, if it does. Then `finish` gives the rest of the text.
        """
        self._tokens += 1
        shown = self._stop_texts.push(new_text)
        if self._stop_texts.found or self.stops(token_id):
            self.reason = "stop"
        elif self._tokens >= self._most:
            self.reason = "length"
        return shown, self.reason

    def finish(self, rest: str = "") -> str:
        """The text that is left when the answer ends, for whatever reason.

        Args:
            rest: text that was not certain before, such as an incomplete character. It can complete a stop text, which
                makes the reason "stop".
        """
        shown = self._stop_texts.push(rest) + self._stop_texts.finish()
        if self._stop_texts.found and self.reason is not None:
            self.reason = "stop"
        return shown


class Ending(Protocol):
    """What can be complete by itself, such as a grammar (constraints.py)."""

    def is_done(self) -> bool:
        """Whether nothing more may follow."""


class AnswerText:
    """The tokens of one answer to the text that may be shown of it. One thread uses it at a time."""

    def __init__(
        self, tracker: StopTracker, stream: TextStream, guide: Ending | None = None, together: int = 1
    ) -> None:
        """
        Args:
            tracker: of the answer.
            stream: makes text of its tokens.
            guide: knows each token before it comes here.
            together: of how many tokens text is made at a time; more than 1 is faster, and for answers that nobody
                reads before their end and that no text stops.
        """
        self._tracker = tracker
        self._stream = stream
        self._guide = guide
        self._together = together
        self._tokens: list[int] = []  # whose text is not made yet

    @property
    def reason(self) -> EndReason | None:
        """Why the answer has ended; None while it goes on."""
        return self._tracker.reason

    def feed(self, token_id: int) -> tuple[str, bool]:
        """Take a token.

        Returns:
            text that may be shown, and whether the answer stops by itself. Its text is complete then, and also where
            `reason` says that it has its length.
        """
        if not self._tracker.stops(token_id):
            self._tokens.append(token_id)
        new = self._push() if len(self._tokens) >= self._together else ""
        shown, reason = self._tracker.feed(token_id, new)
        if reason != "stop" and self._guide is not None and self._guide.is_done():
            reason = self._tracker.reason = "stop"
        if reason is not None:
            shown += self.end()
        return shown, self.reason == "stop"

    def end(self) -> str:
        """The rest of the text, when the answer ends by itself or from outside. Empty the second time."""
        return self._tracker.finish(self._push() + self._stream.finish())

    def _push(self) -> str:
        tokens, self._tokens = self._tokens, []
        return "".join(map(self._stream.push, tokens))
