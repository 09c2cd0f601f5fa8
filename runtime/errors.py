"""The exceptions onnxpress raises on purpose. Their text is for a person: what is wrong, the value, what to do.

OnnxpressError
├── InvalidInputError        a text, an option or a data file that cannot be used   (also a ValueError)
├── InvalidBundleError       a bundle that is broken, tampered with or too new
├── InferenceError           a graph that onnxruntime loaded and could not run
├── UnsupportedModelError    a model or task that cannot be exported
├── ProviderError            an execution provider that was asked for and cannot be had
├── ForkError                a model used in another process than the one that loaded it (also a RuntimeError)
├── QueueFullError           as many requests as allowed are waiting; try again later
├── DeadlineExceededError    no answer in the time the caller allowed               (also a TimeoutError)
├── ClosedError              a runner that was closed                               (also a RuntimeError)
├── BlockedError             a text that a guard stopped
├── GuardError               a guard that failed, so that nobody knows whether it would stop a text
└── VerificationError        no variant passed the gate
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal


class OnnxpressError(Exception):
    """Base of all errors that carry a sentence for a person; the command prints it and exits with `exit_status`."""

    exit_status = 2


class InvalidInputError(OnnxpressError, ValueError):
    """A text, an option or a data file cannot be used."""


class InvalidBundleError(OnnxpressError):
    """A bundle is incomplete, was changed, leaves its folder, or was written by a newer onnxpress."""


class InferenceError(OnnxpressError):
    """onnxruntime loaded a graph and failed while it ran it: memory that it did not get, or a graph that is broken."""


class UnsupportedModelError(OnnxpressError):
    """The model, its files or the task asked for cannot be exported."""


class ProviderError(OnnxpressError):
    """An execution provider was asked for by name and cannot be used on this machine."""


class ForkError(OnnxpressError, RuntimeError):
    """A loaded model was used in a forked process, where the threads of onnxruntime do not exist."""


class QueueFullError(OnnxpressError):
    """As many requests as allowed are waiting already. The request was not taken; the same one may work later."""


class DeadlineExceededError(OnnxpressError, TimeoutError):
    """There was no answer in the time that the caller allowed. The request has left the queue."""


class ClosedError(OnnxpressError, RuntimeError):
    """What was asked has been closed, or was while the request waited."""


class BlockedError(OnnxpressError):
    """A guard stopped a text. Nothing of the text is in the error."""

    def __init__(
        self, guard: str, label: str, score: float | None, place: Literal["input", "output"], index: int = 0
    ) -> None:
        """
        Args:
            guard: its name.
            label: of its model; of a callable, the reason it gave.
            score: the label's probability; None of a callable. Not in the text of the error, which the one who wrote
                what was stopped may read.
            place: `input`, of what a client sent, or `output`, of what a model wrote.
            index: of the text, of those that were looked at together.
        """
        super().__init__(f"the guard {guard!r} stopped the {place}: {label}")
        self.guard, self.label, self.score, self.place, self.index = guard, label, score, place, index


class GuardError(OnnxpressError):
    """A guard failed or took too long, so what it should have looked at was stopped."""

    def __init__(self, guard: str, place: Literal["input", "output"], what: str = "failed") -> None:
        """
        Args:
            guard: its name.
            place: of what it should have looked at.
            what: it did.
        """
        super().__init__(f"the guard {guard!r} {what}, so the {place} was stopped unseen; see the log, or try again")
        self.guard, self.place = guard, place


class VerificationError(OnnxpressError):
    """No variant of the model agrees with PyTorch within the thresholds; nothing was written."""

    exit_status = 1


def first_line(error: BaseException) -> str:
    """What an error of a library says first, or its class where it says nothing; for a sentence of our own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:500]


def require_whole(name: str, value: object, least: int = 1, *, or_none: bool = False) -> None:
    """
    Args:
        name: of the argument.
        value: what was given.
        least: that it may be.
        or_none: None is fine, too.

    Raises:
        InvalidInputError: it is no whole number of at least `least`.
    """
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        suffix = ", or None" if or_none else ""
        raise InvalidInputError(f"{name} is {value!r}; give a whole number of at least {least}{suffix}")


def require_types(options: Any, where: str = "") -> None:
    """
    Args:
        options: a dataclass, whose annotations name plain types, choices, classes and functions.
        where: what the sentence begins with.

    Raises:
        InvalidInputError: a field is not what its annotation says. Of what is in a container nothing is said.
    """
    cls: type = type(options)
    for name, kinds in _kinds_of(cls).items():
        value = getattr(options, name)
        if not any(_is_of(value, kind) for kind in kinds):
            words = [word for kind in kinds for word in _words(kind)]
            wanted = " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
            raise InvalidInputError(f"{where}{name} is {value!r}; give {wanted}")


@functools.cache
def _kinds_of(cls: type) -> dict[str, tuple[Any, ...]]:
    """What each field may be."""
    return {
        name: typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for name, hint in typing.get_type_hints(cls).items()
    }


def _is_of(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else typing.get_origin(kind) or kind)


def _words(kind: Any) -> list[str]:
    """What to give, for a person."""
    if typing.get_origin(kind) is Literal:
        return [repr(choice) for choice in typing.get_args(kind)]
    kind = typing.get_origin(kind) or kind
    return _WORDS.get(kind) or [f"{kind.__name__}(...)"]


_WORDS: dict[Any, list[str]] = {
    bool: ["True", "False"],
    int: ["a whole number"],
    float: ["a number"],
    str: ["a text"],
    types.NoneType: ["None"],
    Callable: ["a function"],
    Mapping: ["a dict"],
}
