"""What each kind of guard has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

from onnxpress.runtime.guards.settings import GuardSettings


@dataclasses.dataclass(frozen=True)
class Finding:
    """Why a text is stopped."""

    label: str
    score: float | None
    """The label's probability; None of a callable."""
    index: int
    """Of the text."""


class Guard(Protocol):
    """Looks at texts. Used in event loops, by many tasks at once."""

    settings: GuardSettings
    passed_on: ClassVar[tuple[type[Exception], ...]]
    """Exceptions that say what is wrong with the texts or the load, and do not mean that the guard is broken."""

    async def look(self, texts: Sequence[str]) -> Finding | None:
        """What stops the first of the texts that is stopped, or None.

        Raises:
            Exception: it cannot tell.
        """

    def close(self, timeout: float | None = None) -> None:
        """Give back what it holds."""
