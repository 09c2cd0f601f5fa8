"""Which request has which row of the cache, and what idle rows are kept for.

A row whose request is done keeps its tokens, until a prompt begins with them or the row is needed. A decoding step runs
all rows from the first that decodes to the last, so rows stay near each other.

Knows nothing of when requests run (scheduler.py). One thread uses it at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from onnxpress.runtime.generation.cache import KeyValueCache, shared_prefix
from onnxpress.runtime.generation.requests import Request

LEAST_SHARED = 16
"""Shorter common beginnings are computed again: a fresh row can be filled together with others."""
_MOST_IDLE = 3  # rows that are added for the sake of what idle ones hold, beyond those that requests need at once
_ROWS_FOR_A_GAP = 4  # rows that decode for each between them that does not: moving one costs about a step of 16 rows


@dataclasses.dataclass(eq=False)
class Seat:
    """An admitted request."""

    request: Request
    row: int | None = None
    """None until its prompt's turn comes."""
    decodes: bool = False
    """Whether its prompt is in."""

    @property
    def prompt(self) -> list[int]:
        """Tokens of its prompt."""
        return self.request.prompt

    @property
    def place(self) -> int:
        """Its row, which it must have."""
        assert self.row is not None, "the request has no row yet"
        return self.row


class Rows:
    """The rows of a cache and who has them."""

    def __init__(self, cache: KeyValueCache, reuse: bool) -> None:
        """
        Args:
            cache: whose rows they are; empty.
            reuse: keep what rows hold for prompts that begin with it.
        """
        self.cache = cache
        self.reuse = reuse
        self._seats: list[Seat | None] = []  # by row
        self._left: list[int] = []  # by row: when its last request left, in ticks of the clock
        self._clock = itertools.count(1)

    @property
    def taken(self) -> int:
        """Rows with a request."""
        return sum(seat is not None for seat in self._seats)

    @property
    def kept(self) -> int:
        """Rows without a request that hold tokens."""
        held = zip(self._seats, self.cache.tokens, strict=False)  # another thread may look while one is changing
        return sum(seat is None and bool(tokens) for seat, tokens in held)

    def reserve(self, rows: int, capacity: int, prompt: list[int]) -> None:
        """Make room for so many requests of so many tokens, which must fit, and if possible for some idle rows.

        Args:
            rows: requests, including one without a row.
            capacity: tokens of the longest.
            prompt: of the one without a row.

        Raises:
            CacheMemoryError: the system has not that much memory; nothing has changed.
        """
        version = self.cache.version
        if rows + self.kept > self.cache.rows:
            source, shared = self.source(prompt)
            idle = self.kept - (shared > 0 and self._may_take(source, shared))
            if self.cache.fits(rows + min(idle, _MOST_IDLE), capacity):
                rows += min(idle, _MOST_IDLE)
        taken = [row for row, seat in enumerate(self._seats) if seat is not None]
        kept = [row for row, seat in enumerate(self._seats) if seat is None and self.cache.tokens[row]]
        kept.sort(key=lambda row: self._left[row], reverse=True)
        origin = self.cache.reserve(rows, capacity, [*taken, *kept])
        if self.cache.version != version:
            self._seats = [None if row < 0 else self._seats[row] for row in origin]
            self._left = [0 if row < 0 else self._left[row] for row in origin]
            self._tell(range(len(origin)))

    def source(self, prompt: list[int]) -> tuple[int, int]:
        """The row that holds most of a prompt's beginning, and how many tokens: at most all but the last, which must
        run for its logits. (-1, 0) where it is not worth while."""
        best, shared = -1, LEAST_SHARED - 1
        if self.reuse:
            for row, tokens in enumerate(self.cache.tokens):
                # Most rows differ early.
                if len(tokens) > shared and tokens[:shared] == prompt[:shared]:
                    common = min(shared_prefix(tokens, prompt), len(prompt) - 1)
                    if common > shared:
                        best, shared = row, common
        return (best, shared) if best >= 0 else (-1, 0)

    def claim(self, seat: Seat, source: int, shared: int) -> None:
        """Give a request a row that has none, with the first `shared` tokens of the row `source`."""
        empty = self.nearest_empty()
        row = self._longest_idle(but=source) if empty is None else empty
        if shared and (row == source or self._may_take(source, shared, alone=empty is None)):
            row = source
            self.cache.truncate(row, shared)
        else:
            self.cache.truncate(row)
            if shared:
                self.cache.copy(source, row, shared)
        self._seats[row] = seat
        seat.row = row
        seat.request.reused_tokens = shared

    def nearest_empty(self) -> int | None:
        """The row that has no request and holds nothing, nearest to those in use, which then decode together."""
        used = [row for row, seat in enumerate(self._seats) if seat is not None]
        first, last = (used[0], used[-1]) if used else (0, -1)
        empty = [row for row, seat in enumerate(self._seats) if seat is None and not self.cache.tokens[row]]
        return min(empty, key=lambda row: (max(first - row, row - last, 0), row < first, row), default=None)

    def free(self, row: int, keep: bool) -> None:
        """Take a row from its request."""
        self._seats[row] = None
        self._left[row] = next(self._clock)
        if not (keep and self.reuse):
            self.cache.truncate(row)

    def close_gaps(self, seats: Sequence[Seat]) -> tuple[int, int]:
        """Move rows together where too many between these do not decode.

        Returns:
            the first row of a step and the last. Those between them without a seat of these have room for a token
            behind what they hold.
        """
        if len(seats) == 1:
            return seats[0].place, seats[0].place
        while True:
            rows = sorted(seat.place for seat in seats)
            between = [row for row in range(rows[0], rows[-1]) if row not in rows]
            if len(between) * _ROWS_FOR_A_GAP <= len(rows):
                break
            if rows[-1] - rows[-2] >= rows[1] - rows[0]:
                self._swap(rows[-1], between[0])
            else:
                self._swap(rows[0], between[-1])
        for row in between:
            self.cache.truncate(row, self.cache.capacity - 1)
        return rows[0], rows[-1]

    def clear(self) -> None:
        """Forget all rows, of a cache that is empty."""
        self._seats, self._left = [], []

    def _longest_idle(self, but: int) -> int:
        """The row without a request that was left longest ago; the row `but` only where there is no other."""
        idle = [row for row, seat in enumerate(self._seats) if seat is None]
        return min(idle, key=lambda row: (row == but, self._left[row]))

    def _may_take(self, row: int, shared: int, alone: bool = False) -> bool:
        """Whether a request may go on in a row whose first `shared` tokens it needs, for little of it would be lost.

        Args:
            row: that holds them.
            shared: how many.
            alone: there is no empty row, so a copy would cost another row what it holds.
        """
        lost = len(self.cache.tokens[row]) - shared
        return self._seats[row] is None and (lost == 0 or (alone and lost < shared))

    def _swap(self, first: int, second: int) -> None:
        self.cache.swap(first, second)
        self._seats[first], self._seats[second] = self._seats[second], self._seats[first]
        self._left[first], self._left[second] = self._left[second], self._left[first]
        self._tell((first, second))

    def _tell(self, rows: Sequence[int]) -> None:
        """Seats know where they are."""
        for row in rows:
            seat = self._seats[row]
            if seat is not None:
                seat.row = row
