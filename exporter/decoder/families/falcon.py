"""Falcon: its attention, rotary or with ALiBi, is written out instead of called through transformers' registry.

With its newer architecture transformers copies each key and value to all heads that share it, and caches the copies;
here each is cached once. ALiBi is computed in bfloat16, positions and products rounded, as transformers does; it is
divided by the square root of the head dimension like the scores.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor
from transformers.models.falcon import modeling_falcon

from onnxpress.exporter.decoder.attention import CausalMask, LinearBias, attend
from onnxpress.exporter.families import replaced


def traceable(model: Any) -> contextlib.AbstractContextManager[None]:
    """See the module."""
    heads = model.config.num_attention_heads
    of_two_keys = modeling_falcon.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # [heads, 1, 2]
    width = model.config.hidden_size // heads
    bias = LinearBias(of_two_keys[:, 0, 1], scale=width**-0.5, rounded=True)
    return replaced(modeling_falcon.FalconAttention, "forward", functools.partialmethod(_attend, bias))


def _attend(
    self: Any,
    bias: LinearBias,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: CausalMask,
    layer_past: Any = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """FalconAttention.forward. `hidden_states`: [batch, sequence, h]."""
    query, key, value = (states.transpose(1, 2) for states in _split_heads(self, self.query_key_value(hidden_states)))
    if alibi is None:
        assert position_embeddings is not None
        query, key = modeling_falcon.apply_rotary_pos_emb(query, key, *position_embeddings)
    key, value = layer_past.update(key, value, self.layer_idx)
    output = attend(query, key, value, attention_mask, self.inv_norm_factor, bias=None if alibi is None else bias)
    return self.dense(output.flatten(2)), None


def _split_heads(self: Any, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [batch, sequence, heads, d]; keys and values with the heads they have."""
    if not self.new_decoder_architecture:
        split: tuple[Tensor, Tensor, Tensor] = self._split_heads(fused)
        return split
    batch, length, _ = fused.shape
    sharing = self.num_heads // self.num_kv_heads
    groups = fused.view(batch, length, self.num_kv_heads, sharing + 2, self.head_dim)
    return groups[:, :, :, :sharing].flatten(2, 3), groups[:, :, :, sharing], groups[:, :, :, sharing + 1]
