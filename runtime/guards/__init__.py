"""Guards look at texts before a model reads them, and at what it writes before anybody else reads it.

    guards = Guards.load([GuardSettings("insults", bundle="toxicity", thresholds={"toxic": 0.8})])
    guards.check(["a text"], "input")                     # raises BlockedError where one stops it
    for text in guards.watched(model.stream("a prompt")):  # nothing of a stopped passage comes out
        print(text, end="")

docs/guards.md says what is guaranteed, and what they do not catch. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.runtime.guards.settings import GuardSettings, Place

if TYPE_CHECKING:
    from onnxpress.runtime.guards.guards import Decision, Guards
    from onnxpress.runtime.guards.watching import OutputWatch

__all__ = ["Decision", "GuardSettings", "Guards", "OutputWatch", "Place"]


def __getattr__(name: str) -> object:
    # The settings are read by the command line, which must not wait for numpy.
    match name:
        case "Guards" | "Decision":
            from onnxpress.runtime.guards import guards as module
        case "OutputWatch":
            from onnxpress.runtime.guards import watching as module  # type: ignore[no-redef]
        case _:
            raise AttributeError(f"module 'onnxpress.runtime.guards' has no attribute {name!r}")
    return getattr(module, name)
