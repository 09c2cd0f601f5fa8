"""Who runs when: requests join a running batch and leave it between two steps, each in a row of the cache.

A request is admitted in order of arrival, once the cache may hold all its tokens besides those of the requests before
it; so none has to give way later. A prompt that begins like what a row holds takes those keys and values over instead
of computing them. While others decode, prompts are filled a piece at a time, so that no step waits for long.

Knows nothing of threads (engine.py), places in the cache (rows.py) and texts (requests.py). One thread uses it at a
time.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import time
from collections import deque
from collections.abc import Sequence

from onnxpress.runtime.generation.bindings import FloatArray
from onnxpress.runtime.generation.cache import CacheMemoryError
from onnxpress.runtime.generation.decoder import Decoder
from onnxpress.runtime.generation.requests import Request
from onnxpress.runtime.generation.rows import LEAST_SHARED, Rows, Seat

_PADDING = 16  # tokens of padding a row that prompts filled together may cost; a run of its own costs about as much
_LEAST_PIECE = 32  # tokens; fewer take nearly as long
_FILL_ALONE = 4  # times more tokens of prompts in a run while nobody decodes


@dataclasses.dataclass
class Counts:
    """What a scheduler has done so far, in tokens."""

    prompt_tokens: int = 0
    """Of admitted requests."""
    reused_tokens: int = 0
    """Of those, taken over from rows that held them."""
    new_tokens: int = 0
    """Chosen."""
    steps: int = 0
    """Decoding steps, whatever the number of rows."""
    drafted_tokens: int = 0
    """Looked up (lookup.py) and run to see whether they are chosen."""
    accepted_tokens: int = 0
    """Of those, chosen."""


class Scheduler:
    """The waiting requests, the admitted ones and their rows."""

    def __init__(self, decoder: Decoder, fill_tokens: int, reuse: bool = True) -> None:
        """
        Args:
            decoder: runs the graph.
            fill_tokens: tokens of prompts that may run between two decoding steps.
            reuse: keep the tokens of finished requests for prompts that begin with them.
        """
        self._decoder = decoder
        self._cache = decoder.cache
        self._fill_tokens = fill_tokens
        self._rows = Rows(decoder.cache, reuse)
        self._waiting: deque[Request] = deque()
        self._admitted: list[Seat] = []  # in order of arrival
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; the number tells equal times apart
        self._numbers = itertools.count()
        self.counts = Counts()

    @property
    def busy(self) -> bool:
        """Whether there is a request to work for."""
        return bool(self._waiting or self._admitted)

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def admitted(self) -> int:
        """Requests whose prompt is being filled or whose answer is being made."""
        return len(self._admitted)

    @property
    def taken(self) -> int:
        """Rows that requests have."""
        return self._rows.taken

    @property
    def kept(self) -> int:
        """Rows kept for prompts that begin with what they hold."""
        return self._rows.kept

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(request)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, next(self._numbers), request))

    def advance(self) -> None:
        """One round: admit, fill prompts up to the limit, one decoding step."""
        self._expire()
        self._admit()
        decoding = any(seat.decodes for seat in self._admitted)
        self._fill(self._fill_tokens if decoding else _FILL_ALONE * self._fill_tokens)
        self._step()

    def drop(self, request: Request) -> None:
        """Let a request that was finished from outside leave at once."""
        if request in self._waiting:
            self._waiting.remove(request)
            return
        for seat in self._admitted:
            if seat.request is request:
                self._leave(seat)
                return

    def requests(self) -> list[Request]:
        """All requests that wait or are admitted."""
        return [*(seat.request for seat in self._admitted), *self._waiting]

    def clear(self) -> None:
        """Forget all requests and give the cache's memory back."""
        self._waiting.clear()
        self._admitted.clear()
        self._deadlines.clear()
        self._rows.clear()
        self._decoder.release()

    # Admission

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.done:
                request.finish("timeout")
                self.drop(request)
        if len(self._deadlines) > 2 * (len(self._waiting) + self.admitted) + 64:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].done]
            heapq.heapify(self._deadlines)

    def _admit(self) -> None:
        """Admit in order of arrival; whoever does not fit yet makes those behind it wait too."""
        while self._waiting:
            request = self._waiting[0]
            rows = len(self._admitted) + 1
            capacity = max([request.most_tokens, *(seat.request.most_tokens for seat in self._admitted)])
            if self._admitted and not self._cache.fits(rows, capacity):
                return
            try:
                self._cache.require(capacity)
                self._rows.reserve(rows, capacity, request.prompt)
            except CacheMemoryError as error:
                self._waiting.popleft()
                request.fail(error)
                continue
            self.counts.prompt_tokens += len(request.prompt)
            request.admitted = time.monotonic()
            self._admitted.append(Seat(request))
            self._waiting.popleft()  # the last: what is raised before ends all that wait, and this must be among them

    # Prompts

    def _fill(self, budget: int) -> None:
        while budget >= min(_LEAST_PIECE, self._fill_tokens):
            group = self._next_group(budget)
            if not group:
                return
            budget -= self._fill_together(group) if len(group) > 1 else self._fill_piece(group[0], budget)

    def _next_group(self, budget: int) -> list[Seat]:
        """The prompts to run next: the first whose turn it is, and short ones that can be filled together with it."""
        group: list[Seat] = []
        for position, seat in enumerate(self._admitted):
            if seat.decodes:
                continue
            if seat.row is None:
                source, shared = self._rows.source(seat.prompt)
                if self._better_soon(seat, shared, position):
                    continue
                adjacent = group and self._rows.nearest_empty() == group[0].place + len(group)
                if not group or (adjacent and not shared and _even([*group, seat], budget)):
                    self._rows.claim(seat, source, shared)
                    self.counts.reused_tokens += shared
                    if group:
                        group.append(seat)
            if not group:
                group.append(seat)
                # A piece of a prompt, or what follows on tokens that are there, runs alone.
                if len(seat.prompt) > budget or self._cache.tokens[seat.place]:
                    break
        return group

    def _fill_together(self, group: Sequence[Seat]) -> int:
        """Run short prompts in their fresh, adjacent rows. Returns the tokens that this took, padding included."""
        prompts = [seat.prompt for seat in group]
        try:
            logits = self._decoder.start(group[0].place, prompts)
        # onnxruntime's exception classes have no common base but Exception; whoever else is served must go on.
        except Exception as error:  # noqa: BLE001
            self._fail(group, error)
            return 0
        for seat, last in zip(group, logits.copy(), strict=True):
            self._begin(seat, last)
        return len(group) * max(map(len, prompts))

    def _fill_piece(self, seat: Seat, most: int) -> int:
        """Run the next tokens of one prompt, about so many at most. Returns how many it were."""
        row = seat.place
        start = len(self._cache.tokens[row])
        if len(seat.prompt) - start <= most + most // 4:  # no run for a small rest
            most = len(seat.prompt) - start
        piece = seat.prompt[start : start + most]
        try:
            logits = self._decoder.extend(row, piece)
        # As above.
        except Exception as error:  # noqa: BLE001
            self._fail([seat], error)
            return 0
        if start + len(piece) == len(seat.prompt):
            self._begin(seat, logits[0])
        return len(piece)

    def _begin(self, seat: Seat, logits: FloatArray) -> None:
        """The prompt is in: choose the first token."""
        if self._accept(seat, logits):
            self._leave(seat)
        seat.decodes = True

    def _better_soon(self, seat: Seat, shared: int, position: int) -> bool:
        """Whether a prompt ahead of this one will leave more of the beginning in the cache than there is now."""
        if not self._rows.reuse or len(seat.prompt) <= shared + LEAST_SHARED:
            return False
        wanted = seat.prompt[: shared + LEAST_SHARED]
        return any(other.prompt[: len(wanted)] == wanted for other in itertools.islice(self._admitted, position))

    def _leave(self, seat: Seat, keep: bool = True) -> None:
        """Free the row of a request that is done."""
        if seat.row is not None:
            self._rows.free(seat.row, keep)
        self._admitted.remove(seat)  # the last, for others may look: who does not run has no row

    # Decoding

    def _step(self) -> None:
        seats = [seat for seat in self._admitted if seat.decodes]
        if not seats:
            return
        if len(seats) == 1 and (draft := _draft(seats[0].request)):
            self._step_drafted(seats[0], draft)
            return
        first, last = self._rows.close_gaps(seats)
        tokens: list[int | None] = [None] * (last - first + 1)
        for seat in seats:
            tokens[seat.place - first] = seat.request.token_ids[-1]
        try:
            logits = self._decoder.step(first, tokens)
        # As above.
        except Exception as error:  # noqa: BLE001
            self._fail(seats, error)
            return
        self.counts.steps += 1
        for seat in seats:
            if self._accept(seat, logits[seat.place - first]):
                self._leave(seat)

    def _step_drafted(self, seat: Seat, draft: Sequence[int]) -> None:
        """A step of a request that decodes alone: its next token and those drafted in one run. Each is chosen as ever;
        the run counts as far as the choices are those drafted."""
        request = seat.request
        assert request.lookup is not None
        tokens = [request.token_ids[-1], *draft]
        try:
            logits = self._decoder.extend(seat.place, tokens, last=len(tokens))
        # As above.
        except Exception as error:  # noqa: BLE001
            self._fail([seat], error)
            return
        # Before each choice, which may be the last: who has the answer must find its tokens counted.
        self.counts.steps += 1
        self.counts.drafted_tokens += len(draft)
        accepted = 0
        done = self._accept(seat, logits[0])
        while not done and accepted < len(draft) and request.token_ids[-1] == draft[accepted]:
            accepted += 1
            self.counts.accepted_tokens += 1
            done = self._accept(seat, logits[accepted])
        request.lookup.learn(accepted)
        self._cache.truncate(seat.place, len(seat.prompt) + len(request.token_ids) - 1)
        if done:
            self._leave(seat)

    def _accept(self, seat: Seat, logits: FloatArray) -> bool:
        """Let a request choose its next token. Returns whether it is done."""
        self.counts.new_tokens += 1
        try:
            return seat.request.accept(logits)
        # Whatever a constraint or a callback raises is its request's affair.
        except Exception as error:  # noqa: BLE001
            seat.request.fail(error)
            return True

    def _fail(self, seats: Sequence[Seat], error: Exception) -> None:
        for seat in seats:
            seat.request.fail(error)
            self._leave(seat, keep=False)


def _draft(request: Request) -> list[int]:
    """How the answer may go on; all of it may be chosen and another token too."""
    if request.lookup is None:
        return []
    return request.lookup.draft(request.prompt, request.token_ids, request.most_new - len(request.token_ids) - 1)


def _even(seats: Sequence[Seat], budget: int) -> bool:
    """Whether prompts may run together: within the budget, and with little padding."""
    lengths = [len(seat.prompt) for seat in seats]
    padded = len(lengths) * max(lengths)
    return padded <= budget and padded - sum(lengths) <= _PADDING * len(lengths)
