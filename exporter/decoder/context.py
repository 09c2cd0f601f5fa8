"""How many tokens a decoder takes, and rotary embeddings that change with the length of the text.

Two kinds of scaling compute other frequencies for long texts: `longrope` has one set up to
`original_max_position_embeddings` and another above it, `dynamic` grows them above `max_position_embeddings`. Keys that
are in the cache were turned by the frequencies of their time, so that no graph is right on both sides. Up to the
boundary the frequencies are constant: that is the context then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["context_of", "positions_as_trained"]

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""Settings that say a context, in the order they are asked."""
_USUAL = 2048
"""Of decoders that compute their positions and say no length; what BLOOM and MPT were trained with."""


def context_of(config: Any) -> tuple[int, tuple[str, ...]]:
    """Tokens at most, and sentences about why these are fewer than the model says.

    Args:
        config: of the text model.
    """
    said = next((value for name in _LENGTHS if isinstance(value := getattr(config, name, None), int)), 0)
    context = said if said > 0 else _USUAL
    notes = []
    for rope in _rope_parameters(config):
        kind = rope.get("rope_type")
        if kind == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if isinstance(original, int) and original < context:
                notes.append(
                    f"the context is {original} tokens, not {context}: above that its rotary embedding (longrope) "
                    "takes other frequencies, with which the keys already cached would not fit"
                )
                context = original
        elif kind is not None and "dynamic" in kind:
            notes.append(
                f"the context is {context} tokens: above that its rotary embedding ({kind}) changes with the length "
                "of the text, with which the keys already cached would not fit"
            )
    return context, tuple(dict.fromkeys(notes))


@contextlib.contextmanager
def positions_as_trained(model: Any) -> Iterator[None]:
    """While inside, rotary embeddings keep the frequencies they have up to `context_of`. Undone by the caller, with
    all that a call did to the model."""
    for part in model.modules():
        kinds = getattr(part, "rope_type", None)
        if isinstance(kinds, str):
            if _changes(kinds):
                part.rope_type, part.inv_freq = "default", part.original_inv_freq.clone()
        elif isinstance(kinds, dict):
            for layer, kind in kinds.items():
                if _changes(kind):
                    setattr(part, f"{layer}_inv_freq", getattr(part, f"{layer}_original_inv_freq").clone())
            part.rope_type = {layer: "default" if _changes(kind) else kind for layer, kind in kinds.items()}
    yield


def _changes(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Of all kinds of layers."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    return [found] if "rope_type" in found else [entry for entry in found.values() if isinstance(entry, dict)]
