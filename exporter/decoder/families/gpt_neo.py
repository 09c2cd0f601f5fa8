"""GPT-Neo: its attention is written out instead of called through transformers' registry.

Scores are not scaled, and every other layer has a window, which it keeps as a mask of all positions.
"""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from onnxpress.exporter.decoder.attention import CausalMask, attend
from onnxpress.exporter.families import replaced


def traceable(model: Any) -> contextlib.AbstractContextManager[None]:
    """See the module."""
    return replaced(GPTNeoSelfAttention, "forward", _attend)


def _attend(self: Any, hidden_states: Tensor, layer_past: Any = None, **_: Any) -> tuple[Tensor, None]:
    """GPTNeoSelfAttention.forward. `hidden_states`: [batch, sequence, h]."""
    query, key, value = (
        self._split_heads(project(hidden_states), self.num_heads, self.head_dim)
        for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    key, value = layer_past.update(key, value, self.layer_id)
    mask = CausalMask(self.config.window_size if self.attention_type == "local" else None)
    output = attend(query, key, value, mask, 1.0)
    return self.out_proj(output.flatten(2)), None
