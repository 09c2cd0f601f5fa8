"""BigBird: full attention up to a length, block-sparse attention above it, in one graph.

Which of the two is decided in Python, so that a trace would keep one of them. Written as a mask, they differ in what
a query sees. With n blocks of `block_size` tokens (the last may be short) and r = `num_random_blocks`, a query in
block i sees of the keys in block j, above the length:

    i = 0 or i = n - 1                        all, once
    |i - j| <= 1, j = n - 1                   once
    j = 0                                     1 + r times
    else                                      not at all

The r are the random blocks: outside training, transformers draws no numbers and takes block 0 for each. Being seen k
times is an addition of log k to the score before the softmax. And a query that is itself padding gives zero.

transformers pads up to a multiple of `block_size`; that padding is masked and changes no other token's result. The mask
is dense: for long inputs the graph needs time and memory by the square of the length, unlike block-sparse attention.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.big_bird import modeling_big_bird

from onnxpress.exporter.families import replaced

CHANGES_WHEN_CALLED = True
"""The first input below the length turns a model into one with full attention, for good."""


@contextlib.contextmanager
def traceable(module: nn.Module) -> Iterator[None]:
    """See the module. A model that is set to full attention is left as it is."""
    models = [part for part in module.modules() if isinstance(part, modeling_big_bird.BigBirdModel)]
    sparse = [model for model in models if model.attention_type == "block_sparse"]
    if not sparse:
        yield
        return
    for model in sparse:
        model.set_attention_type("original_full")
    state = _Masks()
    attend = modeling_big_bird.BigBirdSelfAttention.forward

    def forward(attention: Any, hidden: Tensor, attention_mask: Tensor | None = None, **arguments: Any) -> Any:
        context, scores = attend(attention, hidden, attention_mask, **arguments)
        return context * state.kept_queries, scores

    with (
        replaced(modeling_big_bird, "create_bidirectional_mask", state.make),
        replaced(modeling_big_bird.BigBirdSelfAttention, "forward", forward),
    ):
        yield


class _Masks:
    """Makes the mask of a call and keeps the part that the layers apply after the softmax."""

    kept_queries: Tensor
    """[batch, sequence, 1]: 0 for queries whose result is zero, else 1."""

    def make(self, *, config: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: Any = None) -> Tensor:
        """Additive mask [batch, 1, sequence, sequence], in place of transformers' `create_bidirectional_mask`."""
        attended = attention_mask > 0  # [batch, sequence]
        position = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        block = position // config.block_size
        last = block[-1:]
        is_sparse = position[-1:] >= (5 + 2 * config.num_random_blocks) * config.block_size  # [1]
        query, key = block[:, None], block[None, :]
        sees_all = (query == 0) | (query == last) | ~is_sparse  # [sequence, 1]
        seen = sees_all | (key == 0) | (key == last) | ((query - key).abs() <= 1)  # [sequence, sequence]
        repeated = (key == 0) & ~sees_all
        weight = repeated.to(inputs_embeds.dtype) * math.log(1 + config.num_random_blocks)
        self.kept_queries = (attended | ~is_sparse).to(inputs_embeds.dtype)[:, :, None]
        hidden = torch.finfo(inputs_embeds.dtype).min
        return torch.where(seen & attended[:, None, None, :], weight, hidden)
