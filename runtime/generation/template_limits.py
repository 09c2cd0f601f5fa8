"""How much a chat template may use up: turns, calls, and the size of everything it makes.

Sizes are checked before an operation where its result could be much larger than what it is given, else after it. Knows
nothing of jinja2 (templates.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

_MOST_CHARACTERS = 2_000_000  # of the result, and of whatever is made on the way
_MOST_PRODUCT = 50_000_000  # characters that an operation could make of its operands, by their sizes
_MOST_WORK = 2_000_000  # turns of loops, or what takes as long
_CHARACTERS_OF_WORK = 256  # characters made in about the time of a turn
_LONGEST_RANGE = 100_000
_MOST_BITS = 4_096  # of a number

# fmt: off
GROWING = frozenset([
    "batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust", "slice",
    "tojson", "translate", "truncate", "urlize", "wordwrap", "xmlattr", "zfill",
])
"""Filters and methods of texts whose result can be as large as the product of what they are given."""
AS_TEXT = frozenset([
    "capitalize", "e", "escape", "forceescape", "lower", "pprint", "safe", "string", "striptags", "title", "trim",
    "upper", "urlencode", "wordcount",
])
"""Filters that make a text of what they are given."""
# fmt: on
_WIDE_FORMAT = re.compile(r"\d{5,}|\*|:[^{}]*\{")


class LimitError(Exception):
    """A template wants more than it may have."""


_work_left: ContextVar[list[int]] = ContextVar("work_left")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Around one run of a template: what it does in here is counted."""
    token = _work_left.set([_MOST_WORK])
    try:
        yield
    finally:
        _work_left.reset(token)


def refuse_growth(name: str, subject: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """
    Raises:
        LimitError: one of `GROWING`, called for `subject` with these arguments, could make too much.
    """
    values = [*args, *kwargs.values()]
    if name in ("format", "format_map") and isinstance(subject, str) and _WIDE_FORMAT.search(subject):
        raise LimitError("it formats with a width that is too large")
    numbers = [value for value in values if isinstance(value, int)]
    others = size_of(*(value for value in values if not isinstance(value, int)))
    product = max(1, size_of(subject)) * max(1, others, *numbers)
    if product > _MOST_PRODUCT:
        raise LimitError(f"{name!r} could make {product:,} characters")


def check_product(left: Any, right: Any) -> None:
    """
    Raises:
        LimitError: a sequence times a number would be too long.
    """
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
            check_size(size_of(sequence) * max(0, count))


def check_power(base: Any, exponent: Any) -> None:
    """
    Raises:
        LimitError: the power of two whole numbers would have too many digits.
    """
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * max(exponent, 0) > _MOST_BITS:
        raise LimitError("it computes a number that is too large")


def size_of(*values: Any) -> int:
    """Characters that values have as text, about.

    Raises:
        LimitError: more than may be.
    """
    total, rest = 0, list(values)
    while rest:
        value = rest.pop()
        if isinstance(value, (str, bytes)):
            total += len(value)
        elif isinstance(value, dict):
            total += len(value)
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            total += len(value)
            rest += value
        else:
            total += 1
        check_size(total)
    return total


def check_size(size: int) -> None:
    """
    Raises:
        LimitError: so many characters or items are too many.
    """
    if size > _MOST_CHARACTERS:
        raise LimitError(f"it makes a text or a list of more than {_MOST_CHARACTERS:,} characters or items")


def weighed(value: Any) -> Any:
    """`value`, once its size is paid for.

    Raises:
        LimitError: it is too large, or too much work was done before.
    """
    if isinstance(value, (str, list, tuple, dict)):
        check_size(len(value))
        spend(len(value) // _CHARACTERS_OF_WORK)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise LimitError("it computes a number that is too large")
    return value


def spend(work: int) -> None:
    """
    Raises:
        LimitError: the template has done more than it may.
    """
    left = _work_left.get()
    left[0] -= work
    if left[0] < 0:
        raise LimitError(f"it takes more than {_MOST_WORK:,} steps")


def limited_range(*bounds: int) -> range:
    """`range`, of a length that may be.

    Raises:
        LimitError: it is longer.
    """
    values = range(*bounds)
    try:
        length = len(values)
    except OverflowError:
        length = _LONGEST_RANGE + 1
    if length > _LONGEST_RANGE:
        raise LimitError(f"it counts with range() over more than {_LONGEST_RANGE:,} numbers")
    return values
