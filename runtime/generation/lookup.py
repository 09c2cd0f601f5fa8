"""Guesses how an answer goes on from what stands in it and in its prompt: where its last tokens stood before, and what
followed them there (prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding).

Knows nothing of whether a guess is right: the scheduler runs it and keeps what the model would have chosen anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_DRAFTED = 64
"""Tokens; each needs its logits, which takes memory where the vocabulary is large."""
_LONGEST_MATCH = 3  # tokens


class PromptLookup:
    """The drafts of one request. One thread uses it at a time."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: tokens of a draft at most, at least 1.
        """
        self._most = self._limit = most
        self._tokens: list[int] = []
        self._indexed = 0
        # By up to 3 tokens in a row: the place behind where they last stood.
        self._next: dict[tuple[int, ...], int] = {}

    def draft(self, prompt: Sequence[int], answer: Sequence[int], room: int) -> list[int]:
        """Tokens that may come next: what followed the last 3 tokens where they last stood, else the last 2 or 1.

        Args:
            prompt: the same each time.
            answer: begins with what it was the last time.
            room: tokens at most.

        Returns:
            none, where the last token is a new one or there is no room.
        """
        tokens = self._tokens
        if not tokens:
            tokens += prompt
        tokens += answer[len(tokens) - len(prompt) :]
        for place in range(self._indexed + 1, len(tokens)):
            self._next |= {
                tuple(tokens[place - size : place]): place for size in range(1, min(_LONGEST_MATCH, place) + 1)
            }
        self._indexed = len(tokens) - 1
        matches = (self._next.get(tuple(tokens[-size:])) for size in range(min(_LONGEST_MATCH, len(tokens)), 0, -1))
        start = next((place for place in matches if place is not None), None)
        count = min(self._limit, room)
        if start is None or count < 1:
            return []
        # At the end of what is known it goes on with itself, as a text in a loop does.
        known = tokens[start : start + count]
        return [known[place % len(known)] for place in range(count)]

    def learn(self, accepted: int) -> None:
        """How many tokens of the last draft were right. The next has at most about twice as many, so that a text that
        does not repeat itself costs little."""
        self._limit = min(self._most, 2 * accepted + 1)
