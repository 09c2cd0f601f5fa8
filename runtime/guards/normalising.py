"""A text in the forms that a guard looks at: as it is, and without the simplest disguises.

What a reader does not see or hardly notices is undone: letters of another width or style (Unicode NFKC), accents and
stacked marks over letters, characters without width, upper case, and separators between single letters. Not undone:
letters of other alphabets that look alike, digits for letters, misspellings, other encodings.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = re.compile(
    "[\u00ad\u0300-\u036f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Format characters, fillers, selectors of variants, and marks over letters."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SEPARATOR = r"[ \t\u3000.\-_*·•~|/+,'`^=#]"
# In scripts with spaces between words: three single letters or more, the same between each two.
_SPACED = re.compile(rf"(?<![^\W_])[^\W_]({_SEPARATOR}{{1,3}})[^\W_](?:\1[^\W_])+(?![^\W_])")
_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_SPACED_HAN = re.compile(rf"(?<={_HAN}){_SEPARATOR}{{1,3}}(?={_HAN})")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；…])|\n+")
_SHORTEST = 16
_WORDS = "ai"
"""English words of one letter: "a i d i o t" is one letter too many for the other."""


def forms(text: str) -> list[str]:
    """The different forms of a text, itself first; none where nothing is in it."""
    plain = normalised(text)
    if not plain.strip():
        return []
    return list(dict.fromkeys((text, plain, joined(plain), joined(plain, words=_WORDS))))


def normalised(text: str) -> str:
    """NFKC without marks over letters and unseen characters, in lower case."""
    if not text.isascii():
        # Decomposed, so that marks stand by themselves.
        text = unicodedata.normalize("NFKC", _UNSEEN.sub("", unicodedata.normalize("NFKD", text)))
    return _CONTROL.sub(" ", text.casefold())


def joined(text: str, words: str = "") -> str:
    """Without the separators between single letters, and between Chinese characters. A wider gap stays a gap, and the
    first letter stays apart where it is among `words`."""

    def join(match: re.Match[str]) -> str:
        letters = match[0].split(match[1])
        first = letters.pop(0)
        return f"{first}{' ' if first in words else ''}{''.join(letters)}"

    return _SPACED_HAN.sub("", _SPACED.sub(join, text))


def sentences(text: str) -> list[str]:
    """The sentences of a text, where it has more than one; those of less than 16 characters together with the next, so
    that a text of many tiny ones does not become as many parts."""
    parts = []
    short = ""
    for part in _SENTENCE_END.split(text):
        short = f"{short} {part}".strip()
        if len(short) >= _SHORTEST:
            parts.append(short)
            short = ""
    parts += [short] if short else []
    return parts if len(parts) > 1 else []
