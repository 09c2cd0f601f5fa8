"""Tokens to text while they are chosen: pieces that never split a character, and that together are the whole's text.

`tokenizers.decoders.DecodeStream` is not used: it drops an incomplete character at the end, and on some sequences of
bytes that are no UTF-8 its pieces are not the text of the whole. Knows nothing of stop texts (stopping.py).
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from onnxpress.runtime.tokenizer_checks import tokenizing

if TYPE_CHECKING:
    import tokenizers

_LONGEST_RUN = 64  # byte tokens that are held back until their run ends
_CONTEXT = 8  # tokens before a piece that can change how it is decoded


class TextStream(ABC):
    """The text of one answer. One thread uses it at a time."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """What is certain of the text once this token is there; empty while a character is incomplete."""

    @abstractmethod
    def finish(self) -> str:
        """The rest; nothing the second time. Bytes that are no UTF-8 give U+FFFD, as in the text of the whole."""


class TokenText(NamedTuple):
    """A token by itself."""

    name: str
    """As the tokenizer writes it."""
    raw: bytes | None
    """What it is in a text, maybe a part of a character; None for a special token, which is not in texts."""


class Detokenizer:
    """Makes streams for a tokenizer. Made once for a model; safe to use from many threads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        self._decoders = _decoder_types(tokenizer)
        self._token_bytes: dict[int, bytes] = {}
        byte_ids = ((byte, tokenizer.token_to_id(f"<0x{byte:02X}>")) for byte in range(256))
        self._bytes_of = {token: byte for byte, token in byte_ids if token is not None}
        self._token_texts: dict[int, TokenText] = {}

    def stream(self, *, skip_special_tokens: bool = True, after: Sequence[int] = ()) -> TextStream:
        """A stream whose pieces together are `decode(after + tokens)` without the text of `after`.

        Args:
            skip_special_tokens: leave special tokens out of the text.
            after: tokens before the first one, such as the prompt, up to the end of a character: decoders drop a space
                at the start of a text, which belongs there when the text goes on.
        """
        skipped = self._special if skip_special_tokens else frozenset()
        if self._decoders == ["ByteLevel"]:
            return _ByteStream(self._tokenizer, skipped, self._token_bytes)
        byte_of = self._bytes_of if "ByteFallback" in self._decoders else {}
        byte_level = "ByteLevel" in self._decoders
        return _WindowStream(self._tokenizer, skipped, byte_of, byte_level, after)

    def token_text(self, token_id: int) -> TokenText:
        """A token by itself, as it is in the middle of a text."""
        found = self._token_texts.get(token_id)
        if found is None:
            name = self._tokenizer.id_to_token(token_id)
            raw = None if name is None or token_id in self._special else self._raw(token_id, name)
            found = self._token_texts[token_id] = TokenText(name or f"<{token_id}>", raw)
        return found

    def _raw(self, token_id: int, name: str) -> bytes:
        if "ByteLevel" in self._decoders:
            return _bytes_of_token(name)
        if "ByteFallback" in self._decoders and token_id in self._bytes_of:
            return bytes([self._bytes_of[token_id]])
        with tokenizing():
            # Behind itself it has the space that decoders drop at the start of a text.
            one: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
            two: str = self._tokenizer.decode([token_id, token_id], skip_special_tokens=False)
        return two[len(one) :].encode()


class _ByteStream(TextStream):
    """For byte-level tokens, each of which is a sequence of bytes, whatever is beside it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, skipped: frozenset[int], token_bytes: dict[int, bytes]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._token_bytes = token_bytes  # shared by all streams; what two of them write is equal
        # Replaces the same parts of invalid sequences as tokenizers does: each maximal beginning of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        raw = self._token_bytes.get(token_id)
        if raw is None:
            raw = self._token_bytes[token_id] = _bytes_of_token(self._tokenizer.id_to_token(token_id))
        return self._decoder.decode(raw)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream(TextStream):
    """For any decoder that looks at nothing but the token before: decodes each piece together with what is before it.

    Tokens that stand for a byte are decoded as a run, and all of the run becomes U+FFFD where it is not UTF-8. So a run
    is held back until it ends, or has become long: then its characters are shown, and what comes later cannot change
    them any more.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        skipped: frozenset[int],
        byte_of: dict[int, int],
        byte_level: bool,
        after: Sequence[int],
    ) -> None:
        """
        Args:
            tokenizer: of the tokens.
            skipped: tokens that are left out.
            byte_of: the byte that a token stands for, for tokens that do.
            byte_level: the other tokens are sequences of bytes, which may end within a character.
            after: tokens before the first.
        """
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._byte_of = byte_of
        self._byte_level = byte_level
        self._context = self._last(after)
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._skipped or self._tokenizer.id_to_token(token_id) is None:
            return ""
        self._held.append(token_id)
        if token_id in self._byte_of:
            return self._part_of_run() if len(self._held) >= _LONGEST_RUN else ""
        complete = self._complete(self._bytes_held()) if self._byte_level else len(self._held)
        shown, self._held = self._held[:complete], self._held[complete:]
        text = self._text(shown)
        # What has no text may hide the token before from the next one.
        self._context = shown if text else [*self._context, *shown][-_CONTEXT:]
        return text

    def finish(self) -> str:
        held, self._held = self._held, []
        return self._text(held)

    def _text(self, tokens: list[int]) -> str:
        """What `tokens` add to the context."""
        with tokenizing():
            before: str = self._tokenizer.decode(self._context, skip_special_tokens=False)
            both: str = self._tokenizer.decode(self._context + tokens, skip_special_tokens=False)
        return both[len(before) :]

    def _part_of_run(self) -> str:
        """The complete characters of a run that goes on."""
        complete = self._complete([bytes([self._byte_of[token]]) for token in self._held if token in self._byte_of])
        text = self._text(self._held[:complete])
        del self._held[:complete]
        return text

    def _bytes_held(self) -> list[bytes]:
        return [_bytes_of_token(self._tokenizer.id_to_token(token)) for token in self._held]

    def _complete(self, parts: Sequence[bytes]) -> int:
        """How many of the tokens held are before the incomplete character that they may end with.

        Args:
            parts: the bytes of the last of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(parts))
        pending, complete = len(decoder.getstate()[0]), len(self._held)
        for part in reversed(parts):
            if pending <= 0:
                break
            pending -= len(part)
            complete -= 1
        return complete

    def _last(self, tokens: Sequence[int]) -> list[int]:
        """The last of `tokens` that can matter: at least all of a run of byte tokens and what is before it."""
        kept = [token for token in tokens[-_LONGEST_RUN:] if token not in self._skipped]
        before_run = next((i for i in reversed(range(len(kept))) if kept[i] not in self._byte_of), None)
        if before_run is None:  # all of it is a run: begin with a whole character
            starts = (i for i, token in enumerate(kept) if self._byte_of[token] & 0xC0 != 0x80)
            return kept[next(starts, len(kept)) :]
        return kept[max(0, min(before_run, len(kept) - _CONTEXT)) :]


def _decoder_types(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The types of the tokenizer's decoders, in order."""
    if tokenizer.decoder is None:
        return []
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return [part["type"] for part in _flat(state)]


def _flat(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [part for inner in state["decoders"] for part in _flat(inner)]


def _byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()


def _bytes_of_token(token: str | None) -> bytes:
    """Added tokens may have other characters; they stand for themselves then."""
    if token is None:  # models may have more logits than tokens
        return b""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()
