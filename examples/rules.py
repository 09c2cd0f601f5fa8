"""Guards that are Python functions: what must not leave, whichever model wrote it."""

from __future__ import annotations

import re

_CARD = re.compile(r"(?<!\d)(?:\d[ -]?){15}\d(?!\d)")
_PRICE = re.compile(r"\beuros?\b|€|欧元", re.IGNORECASE)


def no_card_numbers(text: str) -> str | None:
    """Stops the sixteen digits of a payment card, with or without gaps."""
    return "a card number" if _CARD.search(text) else None


def no_prices(text: str) -> str | None:
    """Stops prices too, for a writer that must not name any."""
    return no_card_numbers(text) or ("a price" if _PRICE.search(text) else None)
