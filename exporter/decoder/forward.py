"""The forward pass in progress: one cache that hands keys and values through, and what is noted or emitted meanwhile.

A model is called twice. First for real, on a few tokens: what every layer keeps and which keys it sees is noted
(`Observation`). Then by torch.export (`Trace`): each attention becomes one GroupQueryAttention. Code that transformers
calls through its registries finds the pass in progress by `in_progress()`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from onnxpress.runtime.errors import UnsupportedModelError

__all__ = ["Cache", "Layer", "Observation", "Trace", "call", "in_progress"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one layer keeps of every token, and how far back its queries see."""

    kv_heads: int
    head_dim: int
    """Of the cache: a multiple of 8, as GroupQueryAttention has it, and wide enough for keys and for values."""
    window: int | None
    """Keys that a query sees, its own included; None: all before it."""


class Cache:
    """Looks like a cache of transformers and keeps nothing: new keys and values come back as they are.

    A model that asks for anything else, such as the state of a convolution, gets an AttributeError.
    """

    is_compileable = False
    is_initialized = True

    def __init__(self) -> None:
        self.updates: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called once by each layer; key and value: [batch, kv_heads, sequence, head_dim]."""
        if layer_idx in self.updates:
            raise UnsupportedModelError(f"layer {layer_idx} caches twice in one pass")
        self.updates[layer_idx] = (key, value)
        return key, value

    def layer_of(self, key: Tensor, value: Tensor) -> int:
        """The layer whose update returned just these.

        Raises:
            UnsupportedModelError: none did.
        """
        for layer, (cached_key, cached_value) in self.updates.items():
            if key is cached_key and value is cached_value:
                return layer
        raise UnsupportedModelError(
            "a layer attends to other keys or values than it caches: those of another layer, or changed ones"
        )

    def get_seq_length(self, *_: Any) -> int:
        """Positions are given; what models take from here is not used."""
        return 0

    def get_query_offset(self, *_: Any) -> int:
        """As `get_seq_length`."""
        return 0

    def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[Any, int]:
        """Keys a mask covers; masks are never made."""
        return query_length, 0

    def get_max_cache_shape(self, *_: Any) -> int:
        """No limit."""
        return -1

    get_max_length = get_max_cache_shape

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"its cache would have to hold more than keys and values ({name})")


class Observation:
    """A real pass over a few tokens that notes what the layers are like."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.layers: dict[int, Layer] = {}


class Trace:
    """A pass seen by torch.export.

    Args:
        past: keys and values of each layer, [batch, kv_heads, max_length, head_dim].
        layers: as observed.
        lengths: `seqlens_k` int32 [batch] and `total_sequence_length` int32 [1].
    """

    def __init__(
        self, past: Sequence[tuple[Tensor, Tensor]], layers: Sequence[Layer], lengths: tuple[Tensor, Tensor]
    ) -> None:
        self.cache = Cache()
        self.past = past
        self.layers = layers
        self.seqlens_k, self.total_sequence_length = lengths
        self.present: dict[int, tuple[Tensor, Tensor]] = {}
        self.shared: dict[str, Tensor] = {}
        """What is the same in all layers and made once, such as the positions of all keys."""


_IN_PROGRESS: contextvars.ContextVar[Observation | Trace] = contextvars.ContextVar("forward")


def in_progress() -> Observation | Trace:
    """The pass in progress; there is one whenever transformers calls code of this package."""
    return _IN_PROGRESS.get()


@contextlib.contextmanager
def call(forward: Observation | Trace) -> Iterator[None]:
    """While inside, `forward` is the pass in progress."""
    token = _IN_PROGRESS.set(forward)
    try:
        yield
    finally:
        _IN_PROGRESS.reset(token)
