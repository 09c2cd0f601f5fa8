"""Samples of streams of unknown length, in memory that depends on the sample alone, and always the same for the same
stream."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import random
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

_SEED = 20_261_125


@dataclasses.dataclass(frozen=True)
class Sample(Generic[T]):
    """Some of the items of a stream, in its order."""

    items: tuple[T, ...]
    total: int
    """How many there were."""


def sample(stream: Iterable[T], size: int) -> Sample[T]:
    """`size` items, each set of so many as likely as any other, or all where there are no more.

    Reservoir sampling, algorithm R (Vitter, 1985, Random Sampling with a Reservoir).
    """
    chance = random.Random(_SEED)
    kept: list[tuple[int, T]] = []
    total = 0
    for index, item in enumerate(stream):
        total = index + 1
        if len(kept) < size:
            kept.append((index, item))
        elif (place := chance.randrange(total)) < size:
            kept[place] = (index, item)
    kept.sort(key=lambda entry: entry[0])
    return Sample(tuple(item for _, item in kept), total)


def sample_groups(stream: Iterable[tuple[K, T]], size: int) -> Sample[tuple[K, tuple[T, ...]]]:
    """`size` groups of items with the same key, whole, wherever in the stream their items are.

    Groups are ordered by a hash of their key, and those with the smallest are kept (bottom-k sampling; Cohen and
    Kaplan, 2007). One that was dropped is never let in again, because the largest hash kept only falls; so nothing of
    it needs to be known but its hash, for the count.
    """
    kept: dict[K, list[T]] = {}
    largest: list[tuple[int, K]] = []  # minus the hash, so that the heap's first is the largest
    seen: set[int] = set()
    for key, item in stream:
        if key in kept:
            kept[key].append(item)
            continue
        rank = _rank(key)
        seen.add(rank)
        if len(kept) >= size:
            if rank >= -largest[0][0]:
                continue
            del kept[heapq.heappop(largest)[1]]
        heapq.heappush(largest, (-rank, key))
        kept[key] = [item]
    return Sample(tuple((key, tuple(items)) for key, items in kept.items()), len(seen))


def _rank(key: Hashable) -> int:
    text = repr((_SEED, key)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
