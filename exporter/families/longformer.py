"""Longformer: a sliding window and global tokens, cut into chunks in a way that depends on the input's values.

With `attention_window` 2w, what one layer computes for a token is, with masks in place of chunks:

    a local token     attends to local tokens at a distance of at most w, and to all global tokens
    a global token    attends to all tokens, with projections of its own for query, key and value
    padding           is attended by none and gets zero

Which tokens are global is the head's choice: the first one for classification of a text, else none. transformers pads
up to a multiple of the window; that padding changes no other token's result and is left out. The masks are dense: the
graph needs time and memory by the square of the length, unlike Longformer's own code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.longformer import modeling_longformer
from transformers.models.longformer.modeling_longformer import (
    LongformerEncoder,
    LongformerModel,
    LongformerSelfAttention,
)

from onnxpress.exporter.families import replaced


@contextlib.contextmanager
def traceable(module: nn.Module) -> Iterator[None]:
    """See the module."""
    has_global = False
    merge = LongformerModel._merge_to_attention_mask

    def merge_masks(model: Any, attention_mask: Tensor, global_attention_mask: Tensor) -> Any:
        nonlocal has_global
        has_global = True  # called only where there are global tokens
        return merge(model, attention_mask, global_attention_mask)

    def attend(attention: Any, hidden: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor]:
        output = _local(attention, hidden, attention_mask)
        if has_global:
            output = torch.where(attention_mask[:, :, None] > 0, _global(attention, hidden, attention_mask), output)
        return (output,)

    with (
        replaced(LongformerModel, "_merge_to_attention_mask", merge_masks),
        replaced(LongformerModel, "_pad_to_window_size", _without_padding),
        replaced(LongformerEncoder, "forward", _encode),
        replaced(LongformerSelfAttention, "forward", attend),
    ):
        yield


def _without_padding(model: Any, input_ids: Any, attention_mask: Any, token_type_ids: Any, position_ids: Any,
                     inputs_embeds: Any, pad_token_id: Any) -> Any:  # fmt: skip
    return 0, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds


def _encode(encoder: Any, hidden_states: Tensor, attention_mask: Tensor, **_: Any) -> Any:
    """The layers in order, without asking for the mask's values. `attention_mask`: see `_local`."""
    for layer in encoder.layer:
        (hidden_states,) = layer(hidden_states, attention_mask=attention_mask)[:1]
    return modeling_longformer.LongformerBaseModelOutput(last_hidden_state=hidden_states)


def _local(attention: Any, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """
    Args:
        hidden: [batch, sequence, h].
        attention_mask: [batch, sequence], below 0 for padding, 0 for local and above 0 for global tokens.

    Returns:
        [batch, sequence, h], right for tokens that are not global.
    """
    position = torch.arange(hidden.shape[1], device=hidden.device)
    near = (position[:, None] - position[None, :]).abs() <= attention.one_sided_attn_window_size
    is_local, is_global = (attention_mask == 0)[:, None, :], (attention_mask > 0)[:, None, :]
    output = _attention(
        attention,
        attention.query(hidden),
        attention.key(hidden),
        attention.value(hidden),
        (near & is_local) | is_global,  # [batch, sequence, sequence]
    )
    return output * (attention_mask >= 0).to(hidden.dtype)[:, :, None]


def _global(attention: Any, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """As `_local`, right for global tokens."""
    return _attention(
        attention,
        attention.query_global(hidden),
        attention.key_global(hidden),
        attention.value_global(hidden),
        (attention_mask >= 0)[:, None, :],
    )


def _attention(attention: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention. query, key, value: [batch, sequence, h]; seen: bool, [batch, sequence or 1, sequence]."""
    heads = (*query.shape[:2], attention.num_heads, attention.head_dim)
    query, key, value = (part.view(heads).transpose(1, 2) for part in (query, key, value))  # [batch, n, sequence, d]
    scores = torch.matmul(query / math.sqrt(attention.head_dim), key.transpose(-1, -2))
    masked = torch.finfo(scores.dtype).min
    weights = torch.where(seen[:, None], scores, masked).softmax(dim=-1)
    output: Tensor = torch.matmul(weights, value).transpose(1, 2).flatten(2)
    return output
