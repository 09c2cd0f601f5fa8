"""What a guard is told: plain data, as a server's settings have it."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from onnxpress.runtime.errors import InvalidInputError, require_whole

Place = Literal["input", "output"]


@dataclasses.dataclass(frozen=True)
class GuardSettings:
    """A guard: either a text-classification bundle and thresholds, or a callable."""

    name: str
    bundle: str | None = None
    variant: str | None = None
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of labels of the bundle: a text is stopped where the label's probability is at least that."""
    callable: str | None = None
    """`package.module:name`, of a function that takes a text and returns None, or why it is stopped; it may be async.
    What it returns is shown to the client: a category, not what was found."""
    on: tuple[Place, ...] = ("input", "output")
    models: tuple[str, ...] = ()
    """Names of the models it watches; none for all."""
    on_failure: Literal["block", "pass"] = "block"
    """What becomes of a text at which the guard fails, or takes too long."""
    seconds: float = 30.0
    """That it may take for the texts of a request, or a piece of a stream."""
    stream: Literal["window", "whole"] = "window"
    """window: text leaves when what may belong to it was checked; whole: when all of the answer was."""
    hold_characters: int = 200
    """With `window`, how long a passage may be of which nothing leaves if it is stopped."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be, or contradicts another.
        """
        if not self.name:
            raise InvalidInputError("a guard has no name; give it one, for errors and logs")
        where = f"the guard {self.name!r}"
        if (self.bundle is None) == (self.callable is None):
            raise InvalidInputError(f"{where} needs either a bundle or a callable")
        if self.callable is not None and (self.thresholds or self.variant is not None):
            raise InvalidInputError(f"{where} is a callable; thresholds and variant belong to a bundle")
        if self.bundle is not None and not self.thresholds:
            raise InvalidInputError(f"{where} has no thresholds; give at least one: a label, and a probability")
        for label, threshold in self.thresholds.items():
            if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
                raise InvalidInputError(
                    f"{where}: the threshold of {label!r} is {threshold!r}; give a probability above 0, up to 1"
                )
        self._check_times_and_places(where)

    def _check_times_and_places(self, where: str) -> None:
        if not self.on or not set(self.on) <= set(get_args(Place)):
            raise InvalidInputError(f"{where} is on {', '.join(self.on) or 'nothing'}; give input, output or both")
        for name, allowed in (("on_failure", ("block", "pass")), ("stream", ("window", "whole"))):
            if getattr(self, name) not in allowed:
                raise InvalidInputError(f"{where}: {name} is {getattr(self, name)!r}; give {' or '.join(allowed)}")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float) or not 0 < self.seconds <= 3600:
            raise InvalidInputError(f"{where}: seconds is {self.seconds!r}; give a number above 0, up to 3600")
        require_whole(f"{where}: hold_characters", self.hold_characters, least=16)

    def watches(self, place: Place, model: str | None) -> bool:
        """
        Args:
            place: where a text is.
            model: of the text; None where models have no names, so that guards of named models watch it, too.
        """
        return place in self.on and (not self.models or model is None or model in self.models)
