"""Texts to token ids with a `tokenizer.json`, the same ids as transformers gives. Knows nothing of graphs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
            self._side = (self.backend.truncation or {}).get("direction", "right")
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
        self._copies: dict[tuple[Cut, int, int], tokenizers.Tokenizer] = {
            ("longest_first", 0, settings.max_length): self.backend
        }
        self._lock = threading.Lock()

    def encode(
        self,
        texts: Sequence[TextOrPair],
        cut: Cut = "longest_first",
        stride: int | None = None,
        max_length: int | None = None,
    ) -> list[tokenizers.Encoding]:
        """Token ids of each text or pair of texts, special tokens added, cut to the maximum length; no padding.

        Args:
            texts: texts, or pairs as tuples.
            cut: which text of a pair is cut.
            stride: with a number, the rest of a long text is in `overflowing` of its encoding, as further windows that
                share so many tokens with their neighbours, and encodings have character offsets.
            max_length: tokens of a window, at most the model's, which is the default.

        Raises:
            InvalidInputError: an item is not a text, or is longer than `MAX_TEXT_CHARACTERS`, or the text of a pair
                that must not be cut leaves no room for the other; the message gives the item's index.
        """
        prepared = [self._prepare(index, text) for index, text in enumerate(texts)]
        with tokenizing():
            return self._encode(prepared, cut, stride, max_length)

    def _encode(
        self, prepared: list[TextOrPair], cut: Cut, stride: int | None, max_length: int | None
    ) -> list[tokenizers.Encoding]:
        backend = self._backend(cut, stride or 0, max_length or self.settings.max_length)
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
            raise InvalidInputError(self._too_long(prepared, backend, cut, error)) from error

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the front of a text: its own and the special tokens before them."""
        with tokenizing():
            return prompt_length(self.backend, prompt)

    def _backend(self, cut: Cut, stride: int, max_length: int) -> tokenizers.Tokenizer:
        import tokenizers

        with self._lock:
            key = (cut, stride, max_length)
            if key not in self._copies:
                if len(self._copies) > _MOST_COPIES:
                    self._copies = {("longest_first", 0, self.settings.max_length): self.backend}
                copy = tokenizers.Tokenizer.from_str(self.backend.to_str())
                copy.enable_truncation(max_length, stride=stride, strategy=cut, direction=self._side)
                self._copies[key] = copy
            return self._copies[key]

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

    def _too_long(self, texts: Sequence[TextOrPair], backend: tokenizers.Tokenizer, cut: Cut, error: Exception) -> str:
        """The sentence for the first pair whose other text alone is too long."""
        for index, text in enumerate(texts):
            try:
                _encode_one(backend, text)
            # The same plain Exception as for all of them together.
            except Exception:  # noqa: BLE001
                whole = "first" if cut == "only_second" else "second"
                return (
                    f"the {whole} text of pair {index} leaves no room for the other: the model reads "
                    f"{self.settings.max_length} tokens of both together; shorten it"
                )
        return f"the texts cannot be tokenized: {error}"


_MOST_COPIES = 16  # of a tokenizer that may hold a vocabulary of 250,000


def _encode_one(backend: tokenizers.Tokenizer, text: TextOrPair) -> tokenizers.Encoding:
    return backend.encode(*text) if isinstance(text, tuple) else backend.encode(text)


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
    """Characters of all texts in arguments; infinite where that is not known without reading an iterator."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(map(characters_in, value))
    if isinstance(value, dict):
        return sum(map(characters_in, value.values()))
    return 0 if value is None or isinstance(value, int | float) else float("inf")
