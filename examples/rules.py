"""A guard that is a Python function: what must not leave, whichever model wrote it."""

from __future__ import annotations

import re

_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){15}\d(?!\d)")


def no_card_numbers(text: str) -> str | None:
    """Why a text is stopped: it has the sixteen digits of a payment card, with or without gaps."""
    return "a card number" if _CARD.search(text) else None
