"""MPT: its attention with ALiBi is written out instead of called through transformers' registry."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from torch import Tensor
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor

from onnxpress.exporter.decoder.attention import CausalMask, LinearBias, attend
from onnxpress.exporter.families import replaced


def traceable(model: Any) -> contextlib.AbstractContextManager[None]:
    """See the module. MPT computes ALiBi whatever its `attn_config.alibi` says."""
    of_two_keys = build_mpt_alibi_tensor(model.config.n_heads, 2)  # [heads, 1, 2], of the distances -1 and 0
    return replaced(MptAttention, "forward", functools.partialmethod(_attend, LinearBias(-of_two_keys[:, 0, 0])))


def _attend(
    self: Any, bias: LinearBias, hidden_states: Tensor, attention_mask: CausalMask, **further: Any
) -> tuple[Tensor, None]:
    """MptAttention.forward. `hidden_states`: [batch, sequence, h]."""
    batch, length, _ = hidden_states.shape
    fused = self.Wqkv(hidden_states)
    if self.clip_qkv:
        fused = fused.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    query, key, value = (
        states.reshape(batch, length, self.n_heads, self.head_dim).transpose(1, 2) for states in fused.chunk(3, dim=2)
    )
    cache: Any = further.get("cache", further.get("past_key_values"))
    key, value = cache.update(key, value, self.layer_idx)
    output = attend(query, key, value, attention_mask, self.softmax_scale, bias=bias)
    return self.out_proj(output.flatten(2)), None
