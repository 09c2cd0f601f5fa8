"""Values that programs stumble over, and JSON documents and bytes changed at random places."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

NUMBERS = (
    0, -1, 1, 2, 3, 7, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
    0.5, -0.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "a", "\0", "\ud800", "\n", "..", "/", "../x", "a/../b", "nan", "-1", "none", "None",
    "batch", "sequence", "é", "😀",
    "x" * 5000, "{{ messages }}", "%s%n", "[PAD]", "int64", "float", "logits", "fp32",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [None], [[]], {"": None}, [0], ["a"], {"a": 1})


def value(rng: random.Random) -> Any:
    """Something that a file may say."""
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS))))


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    items: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document[:20]))
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(document: Any, rng: random.Random) -> str:
    """Change one value of a JSON document, and say which."""
    everywhere = list(places(document))
    by_depth = rng.choice(sorted({len(path) for path in everywhere}))  # a vocabulary has more places than all the rest
    path = rng.choice([path for path in everywhere if len(path) == by_depth])
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    kind = rng.random()
    where = "/".join(map(str, path))
    if kind < 0.15:
        del parent[path[-1]]
        return f"without {where}"
    if kind < 0.3:
        parent[path[-1]] = _near(parent[path[-1]], rng)
    elif kind < 0.4:
        other = document
        for step in rng.choice(everywhere):
            other = other[step]
        parent[path[-1]] = copy.deepcopy(other)
    else:
        parent[path[-1]] = value(rng)
    return f"{where} = {str(parent[path[-1]])[:60]!r}"


def _near(old: Any, rng: random.Random) -> Any:
    """A value of the same kind."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, -old, old * 1000, old * 10**9))
    if isinstance(old, float):
        return rng.choice((-old, old * 1e300, old * 1e-300))
    if isinstance(old, str):
        return rng.choice((old[1:], old + "x", old * 50, old.upper(), old.replace("/", "\\")))
    if isinstance(old, list):
        return rng.choice((old[1:], old * 2, old[:1] * 300, [old]))
    if isinstance(old, dict):
        return rng.choice((dict(list(old.items())[1:]), {**old, "extra": 1}))
    return value(rng)


def scramble(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes cut, changed, removed or put in, and what was done."""
    changed, kind = bytearray(data), rng.randrange(5)
    at = rng.randrange(max(1, len(data)))
    if kind == 0:
        return bytes(changed[:at]), f"cut at {at}"
    if kind == 1:
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(max(1, min(len(data), rng.choice((200, 4000, len(data))))))
            changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed), f"bits flipped, the last at {at}"
    if kind == 2:
        del changed[at : at + rng.choice((1, 4, 100))]
        return bytes(changed), f"bytes removed at {at}"
    if kind == 3:
        changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        return bytes(changed), f"bytes put in at {at}"
    piece = data[at : at + rng.choice((4, 50, 1000))]
    changed[at:at] = piece
    return bytes(changed), f"{len(piece)} bytes repeated at {at}"
