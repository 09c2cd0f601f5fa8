"""Tiny random decoders of every family, in memory, and a session that runs their graphs.

Two layers, 32 features, weights with a standard deviation of 0.3, biases and norms disturbed (see tests/models.py).
Windows are shorter than the texts tests write; a layer of each kind is there where a family has several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from onnxpress.exporter.decoder import DecoderFacts, trace_decoder
from onnxpress.exporter.quiet import quiet
from tests.models import disturb

Logits = np.ndarray[Any, Any]

CONTEXT = 40
VOCABULARY = 96

_KV = {"num_key_value_heads": 2}
_FULL_AND_WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, Mapping[str, Any]] = {
    "llama": {**_KV, "head_dim": 16},
    "mistral": {**_KV, "head_dim": 16, "sliding_window": 6},
    "qwen2": {**_KV, "head_dim": 16},
    "qwen3": {**_KV, "head_dim": 16},
    "gemma2": {**_KV, "head_dim": 16, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 5.0, **_FULL_AND_WINDOW},
    "gemma3_text": {**_KV, "head_dim": 16, "query_pre_attn_scalar": 12, **_FULL_AND_WINDOW},
    "phi3": {**_KV, "head_dim": 32, "partial_rotary_factor": 0.5, "pad_token_id": 0},
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


def trace(model: Any, folder: Path) -> tuple[Path, DecoderFacts]:
    """Trace a decoder into a folder, without what the libraries print."""
    path = folder / "model.onnx"
    with quiet():
        return path, trace_decoder(model, path)


class DecoderSession:
    """Runs a decoder's graph with one buffer for past and present, filled with numbers that nothing may read."""

    def __init__(self, path: Path, facts: DecoderFacts, rows: int, max_length: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.cache = {
            f"{layer}.{kind}": onnxruntime.OrtValue.ortvalue_from_numpy(
                np.full((rows, heads, max_length or facts.context, width), 7, np.float32)
            )
            for layer, (heads, width) in enumerate(zip(facts.kv_heads, facts.head_dims, strict=True))
            for kind in ("key", "value")
        }

    def run(
        self,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        *,
        row: int | None = None,
        shift: int = 0,
        lengths: Sequence[int] | None = None,
        every: bool = False,
    ) -> Logits:
        """Logits [rows, vocabulary] of the last token of each row, or [rows, sequence, vocabulary] of all new ones.

        Args:
            tokens: new ones of each row.
            starts: how many a row has before these.
            row: the only row of the cache to use.
            shift: added to all positions: a mistake, unless it is 0.
            lengths: of the rows once these are in; others than the right ones are a mistake.
            every: of all new tokens, not only the last.
        """
        counts = [len(new) for new in tokens]
        width = max(counts)
        ids = np.array([[*new, *[0] * (width - len(new))] for new in tokens])
        ends = np.array(lengths or [start + count for start, count in zip(starts, counts, strict=True)])
        feeds = {
            "input_ids": ids,
            "position_ids": np.array(starts)[:, None] + np.arange(width)[None] + shift,
            "logit_index": np.tile(np.arange(width), (len(tokens), 1)) if every else np.array(counts)[:, None] - 1,
            "seqlens_k": (ends - 1).astype(np.int32),
            "total_sequence_length": np.array([ends.max()], np.int32),
        }
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name, buffer in self.cache.items():
            shape = [len(tokens), *buffer.shape()[1:]]
            pointer = buffer.data_ptr() + (row or 0) * 4 * int(np.prod(shape[1:]))
            binding.bind_input(f"past.{name}", "cpu", 0, np.float32, shape, pointer)
            binding.bind_output(f"present.{name}", "cpu", 0, np.float32, shape, pointer)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        logits: Logits = binding.get_outputs()[-1].numpy()
        return logits if every else logits[:, 0]


def in_pytorch(model: Any, tokens: Sequence[int]) -> Logits:
    """Logits [tokens, vocabulary] of a text, without a cache."""
    with torch.inference_mode():
        logits: Logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    return logits
