"""Texts to token ids with a `tokenizer.json`, the same ids as transformers gives. Knows nothing of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError
from onnxpress.runtime.manifest import TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT_CHARACTERS = 500_000
"""Longer texts are refused: all of a text is tokenized before it is cut to the model's length, so one of them could
keep a processor busy for seconds, and nearly all of its content would be dropped."""


class Tokenizer:
    """A loaded tokenizer with the bundle's truncation."""

    def __init__(self, path: Path, settings: TokenizerSettings) -> None:
        """
        Raises:
            InvalidBundleError: the file is not a tokenizer this version of `tokenizers` reads.
        """
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # tokenizers raises plain Exception for every malformed file.
        except Exception as error:
            raise InvalidBundleError(
                f"{path} is not a readable tokenizer ({error}); export the bundle again"
            ) from error
        self.settings = settings
        self._tokenizer.no_padding()
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.enable_truncation(settings.max_length, direction=side)

    def encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Token ids of each text, special tokens added, cut to the maximum length; no padding.

        Raises:
            InvalidInputError: an item is not a text, or is longer than `MAX_TEXT_CHARACTERS`; the text gives its index.
        """
        prepared = [self._prepare(index, text) for index, text in enumerate(texts)]
        try:
            if len(prepared) == 1:  # no thread hand-over for one text
                return [self._tokenizer.encode(prepared[0])]
            encodings: list[tokenizers.Encoding] = self._tokenizer.encode_batch_fast(prepared)
            return encodings
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidInputError(_unencodable(prepared)) from error

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the front of a text: its own and the special tokens before them."""
        return prompt_length(self._tokenizer, prompt)

    def _prepare(self, index: int, text: str) -> str:
        if not isinstance(text, str):
            raise InvalidInputError(f"text {index} is of type {type(text).__name__}; give a str")
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInputError(
                f"text {index} has {len(text):,} characters, the limit is {MAX_TEXT_CHARACTERS:,}; split it "
                f"(the model reads {self.settings.max_length} tokens at most)"
            )
        return text


def prompt_length(tokenizer: tokenizers.Tokenizer, prompt: str) -> int:
    """Tokens that `prompt` takes at the front of a text: as sentence-transformers 6.2 counts them, all but one closing
    special token."""
    special = tokenizer.encode(prompt).special_tokens_mask
    return len(special) - 1 if special and special[-1] else len(special)


def _unencodable(texts: Sequence[str]) -> str:
    """The sentence for a text with lone surrogates, which no UTF-8 has."""
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"text {index} has a lone surrogate at position {error.start}, so it is not valid Unicode"
    return "a text is not valid Unicode"
