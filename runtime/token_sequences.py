"""Tokens of texts and pairs of texts, without the library's objects: how they are framed, cut and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

Cut = Literal["longest_first", "only_first", "only_second"]
"""Which text of a pair loses tokens when both together are too long."""
Side = Literal["left", "right"]
"""Where a text that is too long loses tokens."""


class Encoded(Protocol):
    """A sequence of tokens, such as a `tokenizers.Encoding`."""

    @property
    def ids(self) -> list[int]:
        """Token ids, special ones included."""

    @property
    def type_ids(self) -> list[int]:
        """The segment of each token."""

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens of a text or pair of texts, special ones included."""

    ids: list[int]
    type_ids: list[int]
    """The segment of each token."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Frame:
    """What stands around the tokens of a text, or of two."""

    special: list[list[tuple[int, int]]]
    """Special tokens, each with its segment: before the first text, after it, and after the second."""
    segments: list[int]
    """Of the tokens of each text."""

    @property
    def special_tokens(self) -> int:
        """How many of them are special."""
        return sum(map(len, self.special))

    def ids(self, place: int) -> list[int]:
        """Special tokens at a place."""
        return [token for token, _ in self.special[place]]

    def fill(self, parts: Sequence[list[int]]) -> TokenSequence:
        """The whole, from the tokens of each text."""
        ids, types = self.ids(0), [segment for _, segment in self.special[0]]
        for part, segment, after in zip(parts, self.segments, self.special[1:], strict=True):
            ids += part
            types += [segment] * len(part)
            ids += [token for token, _ in after]
            types += [kind for _, kind in after]
        return TokenSequence(ids, types)


class PackedTokens:
    """What the graph needs of an encoding, in some 2 kB where the tokenizer's own object takes 50: that keeps the text
    of each token, and windows of what was cut off. Of calls that wait there are many."""

    __slots__ = ("ids", "type_ids")

    def __init__(self, encoding: Encoded) -> None:
        # Arrays serve the graph's inputs as lists do; of the type that the library has.
        self.ids: Any = np.array(encoding.ids, np.uint32)
        self.type_ids: Any = np.array(encoding.type_ids, np.uint32)

    def __len__(self) -> int:
        return len(self.ids)


def cut_ids(ids: list[int], count: int, side: Side) -> list[int]:
    """So many of the tokens."""
    return ids[:count] if side == "right" else ids[max(0, len(ids) - count) :]


def kept_lengths(first: int, second: int, room: int, cut: Cut) -> tuple[int, int] | None:
    """Tokens that are kept of two texts that do not fit together, as the library counts them; None where the text that
    is cut would lose all."""
    if cut == "only_first":
        return (room - second, second) if room > second else None
    if cut == "only_second":
        return (first, room - first) if room > first else None
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (shorter, longer) if first <= second else (longer, shorter)
