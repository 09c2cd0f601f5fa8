"""Sequences of random tokens, to calibrate on where there is no text: every token of the vocabulary is as likely.

They show a graph all of its vocabulary and realistic lengths, but no language; reports say so.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

_SEED = 20_261_125
_SHORTEST, _LONGEST = 6, 256
_NAMED = re.compile(r"[\[<].+[\]>]")  # [unused7], <0x0A>, <extra_id_0>: tokens that no text is made of


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Token ids and the segment of each, special tokens included."""

    ids: list[int]
    type_ids: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def synthetic_sequences(tokenizer: tokenizers.Tokenizer, count: int, longest: int, pairs: bool) -> list[Sequence]:
    """Sequences as the tokenizer would give for texts.

    Args:
        tokenizer: of the model; its truncation does not matter.
        count: how many.
        longest: tokens the model takes. Lengths lie evenly, by their logarithm, from 6 to 256 tokens or this.
        pairs: two texts in each.
    """
    chance = np.random.default_rng(_SEED)
    words = whole_tokens(tokenizer)
    template = _template(tokenizer, pairs)
    special = sum(isinstance(part, tuple) for part in template)
    texts = len(template) - special
    shortest = min(longest, max(_SHORTEST, special + texts))
    lengths = np.geomspace(shortest, max(shortest, min(longest, _LONGEST)), count).round().astype(int)
    made = []
    for length in lengths.tolist():
        content = max(texts, length - special)
        shares = [content] if texts == 1 else [first := int(chance.integers(1, content)), content - first]
        drawn = [chance.choice(words, share).tolist() for share in shares]
        made.append(_filled(template, drawn))
    return made


def synthetic_rows(tokenizer: tokenizers.Tokenizer, width: int, tokens: int) -> list[list[int]]:
    """Rows of `width` token ids without special ones, `tokens` in all or a little more."""
    chance = np.random.default_rng(_SEED)
    rows: list[list[int]] = chance.choice(whole_tokens(tokenizer), (-(-tokens // width), width)).tolist()
    return rows


def whole_tokens(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Ids of the tokens that words begin with: no special or added ones, no rest of a word, no named byte."""
    added = set(tokenizer.get_added_tokens_decoder())
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    plain = {text: number for text, number in vocabulary.items() if number not in added}
    rest = getattr(tokenizer.model, "continuing_subword_prefix", None) or "##"
    whole = {number for text, number in plain.items() if not text.startswith(rest) and not _NAMED.fullmatch(text)}
    return sorted(whole or plain.values() or vocabulary.values())


_Part = tuple[int, int] | int
"""A special token's id and segment, or the segment of a text that stands there."""


def _template(tokenizer: tokenizers.Tokenizer, pairs: bool) -> list[_Part]:
    """What stands around texts."""
    encoding = tokenizer.encode("a", "b") if pairs else tokenizer.encode("a")
    made: list[_Part] = []
    before: int | None = None
    for index, sequence in enumerate(encoding.sequence_ids):
        segment = encoding.type_ids[index]
        if sequence is None:
            made.append((encoding.ids[index], segment))
        elif sequence != before:
            made.append(segment)
        before = sequence
    if all(isinstance(part, tuple) for part in made):  # "a" is no token at all to it
        made.insert(0, 0)
    return made


def _filled(template: list[_Part], drawn: list[list[int]]) -> Sequence:
    ids: list[int] = []
    segments: list[int] = []
    texts = iter(drawn)
    for part in template:
        token_ids, segment = ([part[0]], part[1]) if isinstance(part, tuple) else (next(texts), part)
        ids += token_ids
        segments += [segment] * len(token_ids)
    return Sequence(ids, segments)
