"""BLOOM: its attention with ALiBi is written out instead of called through transformers' registry."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor, dropout_add

from onnxpress.exporter.decoder.attention import CausalMask, LinearBias, attend
from onnxpress.exporter.families import replaced


def traceable(model: Any) -> contextlib.AbstractContextManager[None]:
    """See the module."""
    of_two_keys = build_alibi_tensor(torch.ones(1, 2), model.config.n_head, torch.float32)  # [heads, 1, 2]
    bias = LinearBias(of_two_keys[:, 0, 1])
    return replaced(BloomAttention, "forward", functools.partialmethod(_attend, bias))


def _attend(
    self: Any,
    bias: LinearBias,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: CausalMask,
    layer_past: Any,
    **_: Any,
) -> tuple[Tensor, None]:
    """BloomAttention.forward. `hidden_states` and `residual`: [batch, sequence, h]."""
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    key, value = layer_past.update(key, value, self.layer_idx)
    output = attend(query, key, value, attention_mask, self.inv_norm_factor, bias=bias)
    return dropout_add(self.dense(output.flatten(2)), residual, self.hidden_dropout, self.training), None
