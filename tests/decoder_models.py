"""Tiny random decoders of every family, in memory.

Two layers, 32 features, weights with a standard deviation of 0.3, biases and norms disturbed (see tests/models.py).
Windows are shorter than the texts tests write; a layer of each kind is there where a family has several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from tests.models import disturb

CONTEXT = 40
VOCABULARY = 96

_KV = {"num_key_value_heads": 2}
_FULL_AND_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, Mapping[str, Any]] = {
    "llama": {**_KV, "head_dim": 16},
    "mistral": {**_KV, "head_dim": 16, "sliding_window": 6},
    "qwen2": {**_KV},
    "qwen3": {**_KV, "head_dim": 16},
    "gemma2": {**_KV, "head_dim": 16, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 5.0, **_FULL_AND_WINDOW},
    "gemma3_text": {**_KV, "head_dim": 16, "query_pre_attn_scalar": 12, **_FULL_AND_WINDOW},
    "phi3": {**_KV, "partial_rotary_factor": 0.5, "pad_token_id": 0},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "bloom": {"seq_length": CONTEXT},
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-rw": {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "bias": True,
                  "parallel_attn": False, "attn_implementation": "sdpa"},  # eager adds ALiBi twice
    "olmo2": {**_KV},
    "smollm3": {**_KV, "no_rope_layers": [1, 0], "pad_token_id": 0},
    "granite": {**_KV, "attention_multiplier": 0.4, "residual_multiplier": 0.7, "embedding_multiplier": 1.5,
                "logits_scaling": 2.0},
    "starcoder2": {**_KV, "sliding_window": 6, "use_bias": True},
    "stablelm": {**_KV, "partial_rotary_factor": 0.5, "use_qkv_bias": True, "qk_layernorm": True},
    "cohere": {**_KV, "logit_scale": 0.25, "use_qk_norm": True},
    "mixtral": {**_KV, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {**_KV, **_EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "olmoe": {**_KV, **_EXPERTS},
    # Families nobody asked for by name.
    "qwen3_moe": {**_KV, **_EXPERTS, "head_dim": 16, "moe_intermediate_size": 24},
    "gpt_oss": {**_KV, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **_FULL_AND_WINDOW,
                "rope_scaling": None},
    "gemma": {**_KV, "head_dim": 16},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "gptj": {"rotary_dim": 4, "n_inner": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT, "expansion_ratio": 2},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    "gpt_bigcode": {},
    "codegen": {"rotary_dim": 4},
    "cohere2": {**_KV, "head_dim": 16, **_FULL_AND_WINDOW},
    "olmo": {**_KV, "clip_qkv": 1.5},
    "olmo3": {**_KV, **_FULL_AND_WINDOW},
    "glm4": {**_KV, "head_dim": 16, "pad_token_id": 0},
    "exaone4": {**_KV, "head_dim": 16, **_FULL_AND_WINDOW},
    "granitemoe": {**_KV, "num_local_experts": 4, "num_experts_per_tok": 2},
    "nemotron": {**_KV, "head_dim": 16},
    "persimmon": {"qk_layernorm": True},
    "helium": {**_KV, "head_dim": 8},
    "seed_oss": {**_KV, "head_dim": 16},
    "apertus": {**_KV},
    "arcee": {**_KV},
    "ernie4_5": {**_KV, "head_dim": 16},
    "deepseek_v3": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 12,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "num_key_value_heads": 4,
    },
}  # fmt: skip
"""By model type: settings beside or in place of those that most share."""


def make_decoder(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A decoder with a language model head, float32, in evaluation mode.

    Args:
        family: a key of FAMILIES.
        changes: of the configuration.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(make_config(family, **changes))
    disturb(model)
    return model.eval()


def make_config(family: str, **changes: Any) -> Any:
    """Its configuration."""
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }
    return transformers.AutoConfig.for_model(family.removesuffix("-rw"), **{**shared, **FAMILIES[family], **changes})
