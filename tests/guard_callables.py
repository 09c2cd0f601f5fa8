"""Guards as somebody may write them."""

from __future__ import annotations

import re

NUMBER = 1


def no_digits(text: str) -> str | None:
    """Stops texts with numbers."""
    return "digits" if re.search(r"\d", text) else None


async def no_shouting(text: str) -> str | None:
    """Stops texts in capital letters."""
    return "shouting" if text.isupper() else None


def broken(text: str) -> str | None:
    """Fails at everything."""
    raise ValueError(f"cannot read {text}")
