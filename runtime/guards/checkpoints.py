"""Where in a text that is being written it is looked at: a matter of the text alone, however it comes in pieces."""

from __future__ import annotations

_ENDS = frozenset(".!?;\n。！？；…")


class Checkpoints:
    """Places at the ends of sentences, at least `spacing` characters apart; where there is no end for twice as many, at
    a space or anywhere."""

    def __init__(self, spacing: int) -> None:
        """
        Args:
            spacing: at least 1.
        """
        self._spacing = spacing
        self._position = 0
        self._last = 0
        self._space: int | None = None

    @property
    def last(self) -> int:
        """The last one, in characters from the beginning; 0 where there was none."""
        return self._last

    def feed(self, text: str) -> list[int]:
        """Those that come with so much more text."""
        found = []
        for character in text:
            self._position += 1
            gap = self._position - self._last
            if gap < self._spacing:
                continue
            if character in _ENDS:
                found.append(self._put(self._position))
            elif gap >= 2 * self._spacing:
                found.append(self._put(self._space or self._position))
            elif character.isspace():
                self._space = self._position
        return found

    def _put(self, position: int) -> int:
        self._last, self._space = position, None
        return position
