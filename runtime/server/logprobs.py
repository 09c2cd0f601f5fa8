"""Log probabilities of tokens in the two forms of the OpenAI API: that of chats, and the older one of completions.

Tokens leave with their text and no sooner: what a guard holds back of a text is not told by its tokens.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from onnxpress.runtime.generation.requests import TokenLogprob
from onnxpress.runtime.generation.streaming import TokenText

_LEAST = -9999.0  # what the OpenAI API has for a token that is as good as impossible; JSON has no infinity

_CONTINUING = {b"", *(bytes([byte]) for byte in range(0x80, 0xC0))}  # how a token that goes on with a character begins


class TopLogprob(BaseModel):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int] | None
    """Of the token in UTF-8, maybe a part of a character; null for a special token."""


class ChatLogprob(TopLogprob):
    """A token that was chosen."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """In the form of chats."""

    content: list[ChatLogprob]


class CompletionLogprobs(BaseModel):
    """In the form of completions: a place in each list for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]
    """Where each token begins in the text, in characters."""


@dataclasses.dataclass(frozen=True)
class PlacedLogprob:
    """A token of an answer and its place in the text."""

    logprob: TokenLogprob
    start: int
    """The character it begins in."""
    end: int
    """Behind the last character that has something of it."""


class PlacedLogprobs:
    """The tokens of one answer, as they come and as they may leave."""

    def __init__(self, text_of: Callable[[int], TokenText]) -> None:
        """
        Args:
            text_of: a token by itself.
        """
        self._text_of = text_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0  # complete ones
        self._held: deque[PlacedLogprob] = deque()

    def add(self, logprob: TokenLogprob) -> None:
        """A token was chosen."""
        raw = self._text_of(logprob.token_id).raw or b""
        # What cannot go on with a character that is incomplete begins behind it.
        start = self._characters + (self._partial and raw[:1] not in _CONTINUING)
        self._characters += len(self._decoder.decode(raw))
        self._held.append(PlacedLogprob(logprob, start, self._characters + self._partial))

    @property
    def _partial(self) -> bool:
        """Whether the last character is incomplete."""
        return bool(self._decoder.getstate()[0])

    def take(self, shown: int) -> list[PlacedLogprob]:
        """Those that lie within the first `shown` characters of the text, which have left."""
        taken = []
        while self._held and self._held[0].end <= shown:
            taken.append(self._held.popleft())
        return taken

    def rest(self, length: int, stopped: bool) -> list[PlacedLogprob]:
        """What is left when the answer has ended.

        Args:
            length: of its text.
            stopped: something ended it, whose tokens are no part of it: an end token, or a stop text.
        """
        rest = [placed for placed in self._held if not stopped or placed.start < length]
        self._held.clear()
        return rest


def chat_logprobs(placed: Iterable[PlacedLogprob], text_of: Callable[[int], TokenText]) -> dict[str, Any]:
    """As `ChatLogprobs`."""
    content = []
    for each in placed:
        top = [_top(token_id, value, text_of) for token_id, value in each.logprob.alternatives]
        content.append(_top(each.logprob.token_id, each.logprob.logprob, text_of) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(
    placed: Sequence[PlacedLogprob], text_of: Callable[[int], TokenText], with_top: bool
) -> dict[str, Any]:
    """As `CompletionLogprobs`.

    Args:
        placed: tokens of an answer.
        text_of: a token by itself.
        with_top: give others, too; the chosen token is then always among them.
    """
    top = None
    if with_top:
        top = []
        for each in placed:
            values: dict[str, float] = {}
            for token_id, value in (*each.logprob.alternatives, (each.logprob.token_id, each.logprob.logprob)):
                # Of several tokens with the same text the likeliest counts.
                values.setdefault(_written(text_of(token_id), "bytes:"), max(value, _LEAST))
            top.append(values)
    return {
        "tokens": [_written(text_of(each.logprob.token_id), "bytes:") for each in placed],
        "token_logprobs": [max(each.logprob.logprob, _LEAST) for each in placed],
        "top_logprobs": top,
        "text_offset": [each.start for each in placed],
    }


def _top(token_id: int, logprob: float, text_of: Callable[[int], TokenText]) -> dict[str, Any]:
    token = text_of(token_id)
    return {
        "token": _written(token),
        "logprob": max(logprob, _LEAST),
        "bytes": None if token.raw is None else list(token.raw),
    }


def _written(token: TokenText, prefix: str = "") -> str:
    r"""A token as a text; one that is a part of a character as `\xe2\x80`, behind a prefix."""
    if token.raw is None:
        return token.name
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in token.raw)
