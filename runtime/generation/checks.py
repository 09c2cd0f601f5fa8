"""Checks of values that people give for a generation: each failure is a sentence with the value and what to give."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from onnxpress.runtime.errors import InvalidInputError

_LONGEST_STOP = 1_000  # characters; what could become a stop text is held back and searched with every token
_MOST_STOPS = 64


def whole(name: str, value: Any, least: int, most: int | None = None, advice: str | None = None) -> int:
    """
    Raises:
        InvalidInputError: `value` is no whole number from `least` to `most`.
    """
    advice = advice or f"a whole number of at least {least}" + (f" and at most {most}" if most is not None else "")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidInputError(f"{name} is {value!r} of type {type(value).__name__}; give {advice}")
    result = int(value)
    if result < least or (most is not None and result > most):
        raise InvalidInputError(f"{name} is {value}; give {advice}")
    return result


def number(name: str, value: Any, least: float, most: float, advice: str, zero: bool = False) -> float:
    """
    Raises:
        InvalidInputError: `value` is no number from `least` to `most`, nor 0 where `zero` allows that.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidInputError(f"{name} is {value!r} of type {type(value).__name__}; give {advice}")
    try:
        result = float(value)
    except OverflowError as error:  # of a whole number, which may have any number of digits
        raise InvalidInputError(f"{name} has more than 308 digits; give {advice}") from error
    if math.isnan(result) or not (least <= result <= most or (zero and result == 0)):
        raise InvalidInputError(f"{name} is {value}; give {advice}")
    return result


def time_allowed(value: Any) -> float | None:
    """What `timeout_seconds` says; None for no limit.

    Raises:
        InvalidInputError: `value` is no number of seconds.
    """
    if value is None:
        return None
    return number("timeout_seconds", value, 0, float("inf"), "a number of seconds, or None for no limit")


def flag(name: str, value: Any) -> bool:
    """
    Raises:
        InvalidInputError: `value` is neither true nor false.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidInputError(f"{name} is {value!r} of type {type(value).__name__}; give true or false")
    return bool(value)


def valid_text(name: str, value: Any) -> str:
    """
    Raises:
        InvalidInputError: `value` is no text, or not valid Unicode.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} is of type {type(value).__name__}; give a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} has a lone surrogate at position {error.start}, so it is not valid Unicode"
        ) from error
    return value


def stop_texts(stop: Any) -> tuple[str, ...]:
    """
    Raises:
        InvalidInputError: `stop` is not a text or several, or one of them is empty or too long.
    """
    texts = _listed("stop", [stop] if isinstance(stop, str) else stop, "a text or a list of texts")
    if len(texts) > _MOST_STOPS:
        raise InvalidInputError(f"stop has {len(texts)} texts; give {_MOST_STOPS} at most")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"stop text {index} is of type {type(text).__name__}; give a str")
        if not text:
            raise InvalidInputError(f"stop text {index} is empty, so it is everywhere; leave it out")
        if len(text) > _LONGEST_STOP:
            raise InvalidInputError(f"stop text {index} has {len(text):,} characters; give {_LONGEST_STOP:,} at most")
    return tuple(texts)


def token_ids(ids: Any) -> tuple[int, ...]:
    """
    Raises:
        InvalidInputError: `ids` is not a token id or several.
    """
    listed = _listed("stop_token_ids", [ids] if isinstance(ids, Integral) else ids, "a list of token ids")
    return tuple(whole(f"stop_token_ids[{index}]", token, 0, advice="a token id") for index, token in enumerate(listed))


def _listed(name: str, value: Any, advice: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise InvalidInputError(f"{name} is of type {type(value).__name__}; give {advice}")
    return list(value)
