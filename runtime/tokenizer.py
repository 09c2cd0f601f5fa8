"""Texts to token ids with a `tokenizer.json`, the same ids as transformers gives. Knows nothing of graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError, first_line
from onnxpress.runtime.manifest import TokenizerSettings
from onnxpress.runtime.token_sequences import Cut, Frame, PackedTokens, Side, TokenSequence, cut_ids, kept_lengths
from onnxpress.runtime.tokenizer_checks import is_of_library, read_tokenizer_file, tokenizing

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT_CHARACTERS = 500_000
"""Longer texts are refused: all of a text is tokenized before it is cut to the model's length, so one of them could
keep a processor busy for seconds, and nearly all of its content would be dropped."""

INLINE_CHARACTERS = 4000
"""Up to here an event loop tokenizes by itself: it takes about as long as handing it over."""

TextOrPair = str | tuple[str, str]

_CHUNK = 256  # texts
_LONG_PAIR = 4
"""Characters of a pair for each token that the model reads, beyond which the library is not asked to cut it: it makes
windows of what it cuts off, and of a pair every window of one text with every window of the other."""
_SAMPLE = "a 1 \u4e2d"  # of which every tokenizer makes a token


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
            an encoding for each text; without a stride it may be a `TokenSequence`.

        Raises:
            InvalidInputError: an item is not a text, or is longer than `MAX_TEXT_CHARACTERS`, or the text of a pair
                that must not be cut leaves no room for the other; the message gives the item's index.
        """
        prepared = self.check(texts)
        side = side or self._side
        most = max_length or self.settings.max_length
        with tokenizing():
            if cut is not None and (stride is not None or not self._cut_here(prepared, cut, most)):
                return self._encode(prepared, (cut, stride or 0, most, side), stride)
            return self._join(prepared, cut, most, side)

    def encode_packed(
        self, texts: Sequence[TextOrPair], cut: Cut | None = "longest_first", side: Side | None = None
    ) -> list[PackedTokens]:
        """`encode` for those who need nothing but ids, of any number of texts: never more than `_CHUNK` of the
        library's objects at once."""
        made: list[PackedTokens] = []
        try:
            for start in range(0, len(texts), _CHUNK):
                made += map(PackedTokens, self.encode(texts[start : start + _CHUNK], cut, side=side))
        except InvalidInputError:
            self.encode(texts, cut, side=side)  # fails as well, and counts from the first text
            raise
        return made

    def encode_ids(self, sequences: Iterable[Sequence[int]]) -> list[TokenSequence]:
        """Texts that are tokens already, as `encode` would have them of a text: with the special tokens that a text
        gets, cut to the maximum length.

        Args:
            sequences: the token ids of each text, without special tokens; or with all that a text gets, in their
                places, and then none are added.

        Raises:
            InvalidInputError: a sequence is empty, or the tokenizer has no such token; the message gives the index.
        """
        frame = self._frame(pairs=False)
        opening, closing = frame.ids(0), frame.ids(1)
        made = []
        for index, sequence in enumerate(sequences):
            ids = list(sequence)
            self._check_ids(index, ids)
            special = len(opening) + len(closing)
            if special and len(ids) >= special and ids[: len(opening)] == opening and _ends_with(ids, closing):
                ids = ids[len(opening) : len(ids) - len(closing)]
            made.append(frame.fill([cut_ids(ids, max(1, self.settings.max_length - special), self._side)]))
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

    def _frame(self, *, pairs: bool) -> Frame:
        # Two texts and what stands around them may be more than the model reads.
        backend = self._backend(None if pairs else self._usual)
        with tokenizing():
            sample = backend.encode(_SAMPLE, _SAMPLE) if pairs else backend.encode(_SAMPLE)
        special: list[list[tuple[int, int]]] = [[]]
        segments: list[int] = []
        for token, segment, part in zip(sample.ids, sample.type_ids, sample.sequence_ids, strict=True):
            if part is None:
                special[-1].append((token, segment))
            elif part == len(segments):  # the first token of a text
                segments.append(segment)
                special.append([])
        return Frame(special, segments)

    def _cut_here(self, prepared: Sequence[TextOrPair], cut: Cut, most: int) -> bool:
        """Whether pairs among the texts are cut by us and not by the library."""
        for item in prepared:
            if not isinstance(item, tuple):
                continue
            # The other text may leave little room, and the library's windows are then nearly all of that other text.
            if cut != "longest_first" or sum(map(len, item)) > _LONG_PAIR * most:
                return True
        return False

    def _join(
        self, prepared: Sequence[TextOrPair], cut: Cut | None, most: int, side: Side
    ) -> list[tokenizers.Encoding]:
        """What the library would make of texts and pairs, each different text tokenized once: a query of many pairs, or
        the text of many hypotheses."""
        items = [item if isinstance(item, tuple) else (item,) for item in prepared]
        texts = list(dict.fromkeys(text for item in items for text in item))
        ids_of = {text: one.ids for text, one in zip(texts, self._encode(texts, None, None), strict=True)}
        frames = {size: self._frame(pairs=size == 2) for size in set(map(len, items))}
        made = []
        for index, item in enumerate(items):
            frame, parts = frames[len(item)], [ids_of[text] for text in item]
            room = most - frame.special_tokens
            if sum(map(len, parts)) > room:
                kept = self._kept(index, [len(part) for part in parts], room, cut)
                parts = [cut_ids(part, count, side) for part, count in zip(parts, kept, strict=True)]
            made.append(frame.fill(parts))
        return made

    def _kept(self, index: int, lengths: Sequence[int], room: int, cut: Cut | None) -> Sequence[int]:
        """How many tokens are kept of a text, or of each of two."""
        if cut is None:
            kind = "text" if len(lengths) == 1 else "pair"
            raise InvalidInputError(
                f"{kind} {index} has {sum(lengths):,} tokens and the model reads {room:,} beside special ones; shorten "
                "it, or let it be cut"
            )
        if len(lengths) == 1:
            return [room]
        kept = kept_lengths(lengths[0], lengths[1], room, cut)
        if kept is None:
            raise InvalidInputError(self._no_room(index, cut))
        return kept

    def _encode(
        self, prepared: Sequence[TextOrPair], truncation: _Truncation | None, stride: int | None
    ) -> list[tokenizers.Encoding]:
        """By the library. Without truncation also without special tokens."""
        backend, special = self._backend(truncation), truncation is not None
        try:
            if len(prepared) == 1:  # no thread hand-over for one text
                return [_encode_one(backend, prepared[0], special)]
            # The fast form leaves out the offsets; who asks for windows needs them.
            encode = backend.encode_batch_fast if stride is None else backend.encode_batch
            encodings: list[tokenizers.Encoding] = encode(prepared, add_special_tokens=special)
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

    def check(self, texts: Sequence[TextOrPair]) -> list[TextOrPair]:
        """The texts as a list.

        Raises:
            InvalidInputError: as of `encode`, for what need not be tokenized to be seen.
        """
        return [self._prepare(index, text) for index, text in enumerate(texts)]

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
                _encode_one(backend, text, truncation is not None)
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


def _encode_one(backend: tokenizers.Tokenizer, text: TextOrPair, special: bool) -> tokenizers.Encoding:
    texts = text if isinstance(text, tuple) else (text,)
    return backend.encode(*texts, add_special_tokens=special)


def _ends_with(ids: list[int], end: list[int]) -> bool:
    return ids[len(ids) - len(end) :] == end


def prompt_length(tokenizer: tokenizers.Tokenizer, prompt: str) -> int:
    """Tokens that `prompt` takes at the front of a text: as sentence-transformers 6.2 counts them, all but one closing
    special token."""
    special = tokenizer.encode(prompt).special_tokens_mask
    return len(special) - 1 if special and special[-1] else len(special)


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
