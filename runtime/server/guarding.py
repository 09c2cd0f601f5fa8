"""The guards of a server."""

from __future__ import annotations

from collections.abc import Callable, Collection

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.guards.guards import Decision, Guards
from onnxpress.runtime.server.settings import ServerSettings

_READ_AGAIN = 8
"""How often a guard may read the same: in overlapping windows, by sentences, and in other forms."""


def load_guards(
    settings: ServerSettings,
    models: Collection[str],
    *,
    threads: int | None = None,
    on_decision: Callable[[Decision], None] | None = None,
) -> Guards:
    """
    Args:
        settings: with the guards, and the limits that hold for them, too.
        models: names of those that are served.
        threads: of each bundle; None for what `onnxpress.load` chooses.
        on_decision: hears of each, for metrics.

    Raises:
        OnnxpressError: one cannot be loaded, or watches a model that is not served.
    """
    for guard in settings.guards:
        if unknown := [name for name in guard.models if name not in models]:
            raise InvalidInputError(
                f"the guard {guard.name!r} watches {unknown[0]!r}, which is not served; there are: {', '.join(models)}"
            )
    limits = settings.limits
    return Guards.load(
        settings.guards,
        threads=threads,
        most_waiting=limits.waiting,
        most_tokens=_READ_AGAIN * limits.tokens,
        on_decision=on_decision,
    )
