"""Attention as transformers' registries have it: each call becomes one com.microsoft::GroupQueryAttention.

A query at position i sees the keys at j with max(0, i - window + 1) <= j <= i, and its result is

    softmax(softcap(scale * q k^T) + bias, one more column with the sink's logit) v

with softcap(x) = c tanh(x / c). Which keys are seen comes from the mask a model asks transformers for: the function
that describes it is tried on pairs of positions, and a mask of another kind is refused. Padding needs no mask: rows are
padded on the right, where no valid query sees it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.onnx.ops
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from onnxpress.exporter.decoder.forward import Layer, Observation, Trace, in_progress
from onnxpress.runtime.errors import UnsupportedModelError

__all__ = ["NAME", "CausalMask", "LinearBias", "attend", "attention_replaced"]

NAME = "onnxpress_decoder"
"""Under which transformers finds the functions of this package."""

_ALIGNMENT = 8
"""Head dimensions GroupQueryAttention takes are multiples of this; zeros are appended to others."""
_HARMLESS = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}
"""Tensors that attention functions are given and that change nothing here."""


@dataclasses.dataclass(frozen=True)
class CausalMask:
    """Goes through a model in place of a mask; models that look at it or cast it find what they can handle."""

    window: int | None
    ndim = 0

    def to(self, *_: Any, **__: Any) -> CausalMask:
        """As of a tensor."""
        return self


@dataclasses.dataclass(frozen=True)
class LinearBias:
    """ALiBi: what is added to the scores of a head is its slope times the position of the key.

    The softmax does not see that it is not slope times the distance: the two differ by the same for all keys.
    """

    slopes: Tensor
    """float32 [heads]."""
    scale: float = 1.0
    """Of the whole."""
    rounded: bool = False
    """Whether positions and products are rounded to bfloat16."""

    def __call__(self, positions: Tensor) -> Tensor:
        """float32 [heads, keys]."""
        keys = self._round(positions)
        return self._round(self.slopes[:, None] * keys) * self.scale

    def _round(self, values: Tensor) -> Tensor:
        return values.to(torch.bfloat16).to(torch.float32) if self.rounded else values.to(torch.float32)


@contextlib.contextmanager
def attention_replaced(model: Any) -> Iterator[None]:
    """While inside, a model's attention and masks are those of this module."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _make_mask)
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _make_mask(*, mask_function: Callable[..., Tensor], local_size: int | None = None, **_: Any) -> CausalMask:
    """What transformers calls to make a mask.

    Raises:
        UnsupportedModelError: it is neither causal nor a causal window.
    """
    if isinstance(in_progress(), Observation):
        _check_mask(mask_function, local_size)
    return CausalMask(local_size)


def _check_mask(mask_function: Callable[..., Tensor], window: int | None) -> None:
    near = torch.arange(6)
    edges = near if window is None else torch.cat([near, near + max(window - 3, 6), near + 2 * window + 12])
    query, key = torch.meshgrid(edges, edges, indexing="ij")
    zero = torch.zeros_like(query)
    expected = key <= query if window is None else (key <= query) & (key > query - window)
    try:
        found = mask_function(zero, zero, query, key)
    # A mask over something else than positions, such as groups of image tokens, fails in any way it likes.
    except Exception as error:
        raise UnsupportedModelError(f"its mask depends on more than positions: {error}") from error
    if not torch.equal(torch.as_tensor(found).expand_as(expected), expected):
        raise UnsupportedModelError(
            "its attention is not causal over all earlier tokens or over a window of them "
            "(bidirectional, chunked or prefix attention)"
        )


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. Returns [batch, sequence, heads, head_dim], and no weights.

    `sliding_window`, which some kernels take, is ignored as in transformers' own attention: the mask has it.
    """
    for name, given in further.items():
        if isinstance(given, Tensor) and name not in _HARMLESS:
            raise UnsupportedModelError(f"its attention takes {name}, which GroupQueryAttention does not")
    if not isinstance(attention_mask, CausalMask):
        raise UnsupportedModelError(f"{type(module).__name__} attends without a causal mask of transformers")
    return attend(query, key, value, attention_mask, scaling, softcap=softcap, sinks=s_aux), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: CausalMask,
    scaling: float | None = None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    bias: LinearBias | None = None,
) -> Tensor:
    """Note or emit the attention of one layer.

    Args:
        query: [batch, heads, sequence, d].
        key: [batch, kv_heads, sequence, d], just as the cache returned it.
        value: [batch, kv_heads, sequence, v], just as the cache returned it.
        mask: which tokens see which.
        scaling: None is 1 / sqrt(d).
        softcap: bounds scores s as softcap * tanh(s / softcap); None leaves them as they are.
        sinks: a logit for each head, [heads].
        bias: ALiBi.

    Returns:
        [batch, sequence, heads, v].

    Raises:
        UnsupportedModelError: key and value are not what the layer caches.
    """
    forward = in_progress()
    index = forward.cache.layer_of(key, value)
    batch, heads, length, width = query.shape
    value_width = value.shape[-1]
    layer = Layer(key.shape[1], _aligned(max(width, value_width)), mask.window)
    if isinstance(forward, Observation):
        forward.layers[index] = layer
        return query.new_zeros(batch, length, heads, value_width)
    if layer != forward.layers[index]:
        raise UnsupportedModelError(f"layer {index} is {layer} while traced and was {forward.layers[index]} before")
    flat = [_flat(states, layer.head_dim) for states in (query, key, value)]
    options = {"scale": float(width**-0.5 if scaling is None else scaling)}
    if softcap:
        options["softcap"] = float(softcap)
    output = _group_query_attention(forward, index, flat, options, sinks, bias)
    return output.reshape(batch, length, heads, layer.head_dim)[..., :value_width]


def _group_query_attention(
    forward: Trace,
    index: int,
    states: list[Tensor],
    options: dict[str, float],
    sinks: Tensor | None,
    bias: LinearBias | None,
) -> Tensor:
    layer = forward.layers[index]
    past_key, past_value = forward.past[index]
    query = states[0]
    heads = query.shape[-1] // layer.head_dim
    inputs = [*states, past_key, past_value, forward.seqlens_k, forward.total_sequence_length]
    if bias is not None or sinks is not None:
        added = None if bias is None else _added(forward, bias, query.shape[1])
        inputs += [None, None, None, added, sinks]  # the first three: rotary embedding, which is done before
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs[:-1] if inputs[-1] is None else inputs,
        attrs={
            "num_heads": heads,
            "kv_num_heads": layer.kv_heads,
            "local_window_size": layer.window or -1,
            **options,
        },
        dtypes=[query.dtype, past_key.dtype, past_value.dtype],
        shapes=[list(query.shape), list(past_key.shape), list(past_value.shape)],
        version=1,
    )
    forward.present[index] = (present_key, present_value)
    result: Tensor = output
    return result


def _added(forward: Trace, bias: LinearBias, length: Any) -> Tensor:
    """What is added to all scores: [1, heads, length, keys]."""
    if "keys" not in forward.shared:
        total = forward.total_sequence_length[0].item()
        torch._check(total >= 1)
        forward.shared["keys"] = torch.arange(total)
    added = bias(forward.shared["keys"])
    return added[None, :, None, :].expand(1, added.shape[0], length, added.shape[1])


def _flat(states: Tensor, width: int) -> Tensor:
    """[batch, heads, sequence, d] to [batch, sequence, heads * width], zeros appended to each head."""
    batch, heads, length, given = states.shape
    if given < width:
        states = torch.nn.functional.pad(states, (0, width - given))
    return states.transpose(1, 2).reshape(batch, length, heads * width)


def _aligned(width: int) -> int:
    return -(-width // _ALIGNMENT) * _ALIGNMENT
