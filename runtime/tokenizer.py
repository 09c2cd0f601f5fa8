"""Texts to token ids with a `tokenizer.json`, the same ids as transformers gives. Knows nothing of graphs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError, first_line
from onnxpress.runtime.manifest import TokenizerSettings
from onnxpress.runtime.tokenizer_checks import is_of_library, read_tokenizer_file, tokenizing

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT_CHARACTERS = 500_000
"""Longer texts are refused: all of a text is tokenized before it is cut to the model's length, so one of them could
keep a processor busy for seconds, and nearly all of its content would be dropped."""

INLINE_CHARACTERS = 4000
"""Up to here an event loop tokenizes by itself: it takes about as long as handing it over."""

TextOrPair = str | tuple[str, str]
Cut = Literal["longest_first", "only_first", "only_second"]
"""Which text of a pair loses tokens when both together are too long."""
Side = Literal["left", "right"]
"""Where a text that is too long loses tokens."""

_LONG_PAIR = 4
"""Characters of a pair for each token that the model reads, beyond which the library is not asked to cut it: it makes
windows of what it cuts off, and of a pair every window of one text with every window of the other."""
_SAMPLE = "a 1 \u4e2d"  # of which every tokenizer makes a token


@dataclasses.dataclass(frozen=True, slots=True)
class TokenSequence:
    """Tokens of a text or pair of texts, special ones included."""

    ids: list[int]
    type_ids: list[int]
    """The segment of each token."""

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """A loaded tokenizer with the bundle's truncation. Safe to call from many threads."""

    def __init__(self, path: Path, settings: TokenizerSettings) -> None:
        """
        Raises:
            InvalidBundleError: the file is not a tokenizer this version of `tokenizers` reads.
        """
        import tokenizers

        try:
            self.backend = tokenizers.Tokenizer.from_buffer(read_tokenizer_file(path))
            self.backend.no_padding()
            self._side: Side = (self.backend.truncation or {}).get("direction", "right")
            self.backend.enable_truncation(settings.max_length, direction=self._side)
        # tokenizers raises plain Exception for malformed files, ValueError for other bytes, and panics.
        except BaseException as error:
            if not isinstance(error, (OSError, ValueError, RecursionError)) and not is_of_library(error):
                raise
            raise InvalidBundleError(
                f"{path} is not a readable tokenizer ({first_line(error)}); export the bundle again"
            ) from error
        self.settings = settings
        # Truncation is a state of the tokenizer, not an argument of a call: each kind gets a copy of its own.
        self._copies: dict[_Truncation | None, tokenizers.Tokenizer] = {self._usual: self.backend}
        self._lock = threading.Lock()

    @property
    def _usual(self) -> _Truncation:
        return "longest_first", 0, self.settings.max_length, self._side

    def encode(
        self,
        texts: Sequence[TextOrPair],
        cut: Cut | None = "longest_first",
        stride: int | None = None,
        max_length: int | None = None,
        side: Side | None = None,
    ) -> list[tokenizers.Encoding]:
        """Token ids of each text or pair of texts, special tokens added, cut to the maximum length; no padding.

        Args:
            texts: texts, or pairs as tuples.
            cut: which text of a pair is cut. None: nothing is, and what is too long is an error.
            stride: with a number, the rest of a long text is in `overflowing` of its encoding, as further windows that
                share so many tokens with their neighbours, and encodings have character offsets.
            max_length: tokens of a window, at most the model's, which is the default.
            side: where texts are cut; None for the tokenizer's own side.

        Returns:
            an encoding for each text; a pair that is cut may be a `TokenSequence` where there is no stride.

        Raises:
            InvalidInputError: an item is not a text, or is longer than `MAX_TEXT_CHARACTERS`, or the text of a pair
                that must not be cut leaves no room for the other; the message gives the item's index.
        """
        prepared = [self._prepare(index, text) for index, text in enumerate(texts)]
        side = side or self._side
        most = max_length or self.settings.max_length
        with tokenizing():
            if cut is not None and (stride is not None or not self._cut_here(prepared, cut, most)):
                return self._encode(prepared, (cut, stride or 0, most, side), stride)
            encodings = self._encode(prepared, None, None)
        for index, encoding in enumerate(encodings):
            if len(encoding) > most:
                encodings[index] = self._cut(index, encoding, cut, most, side)
        return encodings

    def encode_ids(self, sequences: Iterable[Sequence[int]]) -> list[TokenSequence]:
        """Texts that are tokens already, as `encode` would have them of a text: with the special tokens that a text
        gets, cut to the maximum length.

        Args:
            sequences: the token ids of each text, without special tokens; or with all that a text gets, in their
                places, and then none are added.

        Raises:
            InvalidInputError: a sequence is empty, or the tokenizer has no such token; the message gives the index.
        """
        before, after, segment = self._around()
        begin, end = [one for one, _ in before], [one for one, _ in after]
        room = max(1, self.settings.max_length - len(begin) - len(end))
        made = []
        for index, sequence in enumerate(sequences):
            ids = list(sequence)
            self._check_ids(index, ids)
            special = len(begin) + len(end)
            if special and len(ids) >= special and ids[: len(begin)] == begin and ids[len(ids) - len(end) :] == end:
                ids = ids[len(begin) : len(ids) - len(end)]
            ids = ids[:room] if self._side == "right" else ids[max(0, len(ids) - room) :]
            types = [*(kind for _, kind in before), *([segment] * len(ids)), *(kind for _, kind in after)]
            made.append(TokenSequence([*begin, *ids, *end], types))
        return made

    def _check_ids(self, index: int, ids: Sequence[int]) -> None:
        if not ids:
            raise InvalidInputError(f"token sequence {index} is empty; give at least one token id")
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= _MOST_ID:
                raise InvalidInputError(f"token sequence {index} has {one!r:.40}; token ids are whole numbers from 0")
        for one in set(ids):
            if self.backend.id_to_token(one) is None:
                raise InvalidInputError(
                    f"token sequence {index} has the id {one}, which the model's tokenizer does not know; it has "
                    f"{self.backend.get_vocab_size():,} tokens: is the text tokenized with that of another model?"
                )

    def _around(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], int]:
        """Special tokens before and after a text, each with its segment; the segment of the text."""
        with tokenizing():
            sample = self.backend.encode(_SAMPLE)
        mask, tokens = sample.special_tokens_mask, list(zip(sample.ids, sample.type_ids, strict=True))
        inside = [position for position, special in enumerate(mask) if not special]
        return tokens[: inside[0]], tokens[inside[-1] + 1 :], tokens[inside[0]][1]

    def _cut_here(self, prepared: Sequence[TextOrPair], cut: Cut, most: int) -> bool:
        """Whether pairs among the texts are cut by us and not by the library."""
        for item in prepared:
            if not isinstance(item, tuple):
                continue
            # The other text may leave little room, and the library's windows are then nearly all of that other text.
            if cut != "longest_first" or sum(map(len, item)) > _LONG_PAIR * most:
                return True
        return False

    def _cut(self, index: int, encoding: tokenizers.Encoding, cut: Cut | None, most: int, side: Side) -> TokenSequence:
        """What the library would keep of an encoding that is too long."""
        sequence_of = encoding.sequence_ids
        parts = [[place for place, part in enumerate(sequence_of) if part == number] for number in (0, 1)]
        if cut is None:
            kind = "text" if not parts[1] else "pair"
            raise InvalidInputError(
                f"{kind} {index} has {len(encoding):,} tokens, special ones included, and the model reads {most:,}; "
                "shorten it, or let it be cut"
            )
        kept = _lengths(len(parts[0]), len(parts[1]), most - sequence_of.count(None), cut)
        if kept is None:
            raise InvalidInputError(self._no_room(index, cut))
        gone: set[int] = set()
        for places, count in zip(parts, kept, strict=True):
            gone.update(places[count:] if side == "right" else places[: len(places) - count])
        places = [place for place in range(len(encoding)) if place not in gone]
        ids, types = encoding.ids, encoding.type_ids
        return TokenSequence([ids[place] for place in places], [types[place] for place in places])

    def _encode(
        self, prepared: list[TextOrPair], truncation: _Truncation | None, stride: int | None
    ) -> list[tokenizers.Encoding]:
        backend = self._backend(truncation)
        try:
            if len(prepared) == 1:  # no thread hand-over for one text
                return [_encode_one(backend, prepared[0])]
            # The fast form leaves out the offsets; who asks for windows needs them.
            encode = backend.encode_batch_fast if stride is None else backend.encode_batch
            encodings: list[tokenizers.Encoding] = encode(prepared)
            return encodings
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidInputError(_unencodable(prepared)) from error
        # tokenizers raises plain Exception when it cannot cut.
        except Exception as error:
            raise InvalidInputError(self._too_long(prepared, backend, truncation, error)) from error

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the front of a text: its own and the special tokens before them."""
        with tokenizing():
            return prompt_length(self.backend, prompt)

    def _backend(self, truncation: _Truncation | None) -> tokenizers.Tokenizer:
        import tokenizers

        with self._lock:
            if truncation not in self._copies:
                if len(self._copies) > _MOST_COPIES:
                    self._copies = {self._usual: self.backend}
                copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
                if truncation is None:
                    copy.no_truncation()
                else:
                    cut, stride, most, side = truncation
                    copy.enable_truncation(most, stride=stride, strategy=cut, direction=side)
                self._copies[truncation] = copy
            return self._copies[truncation]

    def _prepare(self, index: int, item: TextOrPair) -> TextOrPair:
        texts = item if isinstance(item, tuple) else (item,)
        if isinstance(item, tuple) and len(item) != 2:
            raise InvalidInputError(f"text {index} is a tuple of {len(item)}; a pair of texts has two")
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"text {index} is of type {type(text).__name__}; give a str")
            if len(text) > MAX_TEXT_CHARACTERS:
                raise InvalidInputError(
                    f"text {index} has {len(text):,} characters, the limit is {MAX_TEXT_CHARACTERS:,}; split it "
                    f"(the model reads {self.settings.max_length} tokens at most)"
                )
        return item

    def _too_long(
        self,
        texts: Sequence[TextOrPair],
        backend: tokenizers.Tokenizer,
        truncation: _Truncation | None,
        error: Exception,
    ) -> str:
        """The sentence for the first pair whose other text alone is too long."""
        for index, text in enumerate(texts):
            try:
                _encode_one(backend, text)
            # The same plain Exception as for all of them together.
            except Exception:  # noqa: BLE001
                if truncation is not None:
                    return self._no_room(index, truncation[0])
        return f"the texts cannot be tokenized: {error}"

    def _no_room(self, index: int, cut: Cut) -> str:
        whole = "first" if cut == "only_second" else "second"
        return (
            f"the {whole} text of pair {index} leaves no room for the other: the model reads "
            f"{self.settings.max_length} tokens of both together; shorten it"
        )


_Truncation = tuple[Cut, int, int, Side]
"""Which text is cut, tokens that windows share, tokens at most, side; None in place of it: nothing is cut."""
_MOST_ID = 2**32 - 1  # the library's
_MOST_COPIES = 16  # of a tokenizer that may hold a vocabulary of 250,000


def _encode_one(backend: tokenizers.Tokenizer, text: TextOrPair) -> tokenizers.Encoding:
    return backend.encode(*text) if isinstance(text, tuple) else backend.encode(text)


def prompt_length(tokenizer: tokenizers.Tokenizer, prompt: str) -> int:
    """Tokens that `prompt` takes at the front of a text: as sentence-transformers 6.2 counts them, all but one closing
    special token."""
    special = tokenizer.encode(prompt).special_tokens_mask
    return len(special) - 1 if special and special[-1] else len(special)


def _lengths(first: int, second: int, room: int, cut: Cut) -> tuple[int, int] | None:
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


def _unencodable(texts: Sequence[TextOrPair]) -> str:
    """The sentence for a text with lone surrogates, which no UTF-8 has."""
    for index, item in enumerate(texts):
        for text in item if isinstance(item, tuple) else (item,):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"text {index} has a lone surrogate at position {error.start}, so it is not valid Unicode"
    return "a text is not valid Unicode"


def characters_in(value: Any) -> float:
    """Characters of all texts in arguments, or tokens; infinite where that is not known without reading an iterator."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], int):
            return len(value)
        return sum(map(characters_in, value))
    if isinstance(value, dict):
        return sum(map(characters_in, value.values()))
    return 0 if value is None or isinstance(value, int | float) else float("inf")
