"""Keys and values of the tokens that running requests have seen: one block of memory a layer, a row for each request.

Each layer has a key and a value buffer [rows, kv_heads, capacity, head_dim], bound both as past and as present of the
graph, so that a step writes the new tokens in place and copies nothing. Rows stay contiguous because a decoding step
reads the first n of them. Buffers grow in steps, so that growth is rare; what a rectangle takes is known before it is
allocated. What memory they lie in is storage.py's.

Knows nothing of requests (engine.py) and graphs (decoder.py). One thread uses it at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.storage import HOST, ITEM_BYTES, Buffer, CacheType, Storage

_LEAST_CAPACITY = 128
_SHARE_OF_FREE_MEMORY = 0.5  # what a cache may take where nobody says: the rest is for weights and activations


class CacheMemoryError(InvalidInputError):
    """A request needs a larger cache than may be allocated."""


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """What a model keeps of each token."""

    kv_heads: tuple[int, ...]
    """By layer."""
    head_dims: tuple[int, ...]
    """By layer."""
    dtype: CacheType = "float32"

    @property
    def token_bytes(self) -> int:
        """Bytes of one token: keys and values of all layers."""
        values = sum(heads * size for heads, size in zip(self.kv_heads, self.head_dims, strict=True))
        return 2 * values * ITEM_BYTES[self.dtype]

    def size_bytes(self, rows: int, capacity: int) -> int:
        """Bytes of a cache for `rows` requests of up to `capacity` tokens."""
        return rows * capacity * self.token_bytes


class KeyValueCache:
    """The buffers, and which tokens each row holds.

    `tokens[row]` are the tokens whose keys and values are valid, in order from position 0. Whoever runs the graph
    appends to them.
    """

    def __init__(
        self,
        layout: CacheLayout,
        context: int,
        limit_bytes: int | None = None,
        most_rows: int = 16,
        storage: Storage = HOST,
    ) -> None:
        """
        Args:
            layout: of the model.
            context: tokens of a row at most.
            limit_bytes: what all buffers may take; None for half of the memory that is free now.
            most_rows: rows at most.
            storage: where the buffers lie.
        """
        self.layout = layout
        self.storage = storage
        self.context = context
        self.limit_bytes = int(storage.free_bytes() * _SHARE_OF_FREE_MEMORY) if limit_bytes is None else limit_bytes
        self.most_rows = most_rows
        self.rows = 0
        self.capacity = 0
        self.version = 0
        """Changes when the buffers are others than before, so that what was bound to them must be bound anew."""
        self.buffers: dict[str, Buffer] = {}
        """By graph input: `past.{layer}.key`, `past.{layer}.value`."""
        self.tokens: list[list[int]] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffers as they are."""
        return self.layout.size_bytes(self.rows, self.capacity)

    def fits(self, rows: int, capacity: int) -> bool:
        """Whether `rows` rows of `capacity` tokens may be had at once."""
        within = rows <= self.most_rows and capacity <= self.context
        return within and self.layout.size_bytes(rows, capacity) <= self.limit_bytes

    def require(self, capacity: int, rows: int = 1) -> None:
        """
        Raises:
            CacheMemoryError: not even so many rows of `capacity` tokens may be had.
        """
        if not self.fits(rows, capacity):
            beams = f"{rows} beams of " if rows > 1 else ""
            raise CacheMemoryError(
                f"{beams}{capacity} tokens need {_megabytes(self.layout.size_bytes(rows, capacity))} of cache, "
                f"{_megabytes(self.limit_bytes)} are allowed; ask for fewer tokens, or allow the cache more memory"
            )

    def reserve(self, rows: int, capacity: int, keep: Sequence[int]) -> list[int]:
        """Make room for at least `rows` rows of `capacity` tokens, which must fit. Does nothing where there is room.

        Args:
            rows: how many rows are needed.
            capacity: tokens each must be able to hold.
            keep: old rows in the order of their worth; those that find no place in the new buffers are dropped. Rows
                that are not named are empty afterwards.

        Returns:
            the old row that each row holds now; -1 for none.

        Raises:
            CacheMemoryError: there is not that much memory; the cache is as before.
        """
        if rows <= self.rows and capacity <= self.capacity:
            return list(range(self.rows))
        new_rows, new_capacity = self._rectangle(rows, capacity)
        try:
            shapes = self._shapes(new_rows, new_capacity)
            grown = {name: self.storage.zeros(shape, self.layout.dtype) for name, shape in shapes}
        except MemoryError as error:
            size = _megabytes(self.layout.size_bytes(new_rows, new_capacity))
            raise CacheMemoryError(
                f"the {self.storage.owner} has no {size} for the cache of {new_rows} requests with {new_capacity} "
                "tokens; allow fewer at once, or ask for fewer tokens"
            ) from error
        origin = [row for row in keep if len(self.tokens[row]) <= new_capacity][:new_rows]
        for name, buffer in grown.items():
            old = self.buffers.pop(name, None)  # layer by layer, so that two whole caches are never in use
            for row, source in enumerate(origin):
                length = len(self.tokens[source])
                if old is not None and length:
                    self.storage.copy(buffer, row, old, source, length)
            self.buffers[name] = buffer
        empty = new_rows - len(origin)
        self.tokens = [self.tokens[source] for source in origin] + [[] for _ in range(empty)]
        self.rows, self.capacity = new_rows, new_capacity
        self.version += 1
        return origin + [-1] * empty

    def swap(self, first: int, second: int) -> None:
        """Exchange two rows."""
        if first == second:
            return
        if not self.tokens[first]:
            first, second = second, first
        length = max(len(self.tokens[first]), len(self.tokens[second]))
        targets, sources = ([second, first], [first, second]) if self.tokens[second] else ([second], [first])
        for buffer in self.buffers.values():
            self.storage.move(buffer, targets, sources, 0, length)
        self.tokens[first], self.tokens[second] = self.tokens[second], self.tokens[first]

    def copy(self, source: int, target: int, length: int) -> None:
        """Make `target` hold the first `length` tokens of `source`."""
        for buffer in self.buffers.values():
            self.storage.move(buffer, [target], [source], 0, length)
        self.tokens[target] = self.tokens[source][:length]

    def rearrange(self, origin: Sequence[int], start: int) -> None:
        """Make the first rows hold what other rows held, which are as long as each other.

        Args:
            origin: of each of the first rows, the row whose tokens it is to hold; one may be named several times.
            start: tokens at the beginning that are the same in all of them.
        """
        moved = [row for row, source in enumerate(origin) if row != source]
        sources = [origin[row] for row in moved]
        length = len(self.tokens[origin[0]])
        if moved:
            for buffer in self.buffers.values():
                self.storage.move(buffer, moved, sources, start, length)
        self.tokens[: len(origin)] = [list(self.tokens[source]) for source in origin]

    def truncate(self, row: int, length: int = 0) -> None:
        """Forget what `row` holds beyond its first `length` tokens."""
        del self.tokens[row][length:]

    def release(self) -> None:
        """Give all memory back."""
        self.buffers, self.tokens = {}, []
        self.rows = self.capacity = 0
        self.version += 1

    def _rectangle(self, rows: int, capacity: int) -> tuple[int, int]:
        """Rows and capacity to allocate: the largest of the roomy choices that the limit allows."""
        assert self.fits(rows, capacity)
        roomy_rows = min(self.most_rows, _power_of_two(rows))
        roomy_capacity = min(self.context, max(_LEAST_CAPACITY, _power_of_two(capacity)))
        choices = (
            (max(roomy_rows, self.rows), max(roomy_capacity, self.capacity)),
            (roomy_rows, max(roomy_capacity, self.capacity)),
            (roomy_rows, roomy_capacity),
            (rows, roomy_capacity),
            (roomy_rows, capacity),
        )
        return next((choice for choice in choices if self.fits(*choice)), (rows, capacity))

    def _shapes(self, rows: int, capacity: int) -> list[tuple[str, tuple[int, int, int, int]]]:
        return [
            (f"past.{layer}.{kind}", (rows, heads, capacity, size))
            for layer, (heads, size) in enumerate(zip(self.layout.kv_heads, self.layout.head_dims, strict=True))
            for kind in ("key", "value")
        ]


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences of the same type have in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # comparing slices is much faster than comparing tokens one by one
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
