"""Tiny random models of every family and head, saved as users have them.

Weights have a standard deviation of 0.3: with the default of 0.02 a two-layer model hardly notices positions and masks,
and a test that breaks them would pass. Biases and norms are disturbed too: made as zeros and ones, a graph that drops
them would pass.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from tests import tokenizer_styles as styles
from tests.tokenizer_styles import POSITIONS, VOCABULARY

__all__ = [
    "FAMILIES",
    "HEADS",
    "LABELS",
    "POSITIONS",
    "VOCABULARY",
    "Family",
    "bert_config",
    "disturb",
    "make_embedder",
    "make_model",
    "make_tokenizer",
    "write_json",
]

LABELS = {
    "text-classification": ("negative", "neutral", "positive"),
    "zero-shot-classification": ("entailment", "neutral", "contradiction"),
    "text-ranking": ("relevance",),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}
"""Label names by task, in the order of the logits."""
HEADS = {
    "text-classification": "AutoModelForSequenceClassification",
    "zero-shot-classification": "AutoModelForSequenceClassification",
    "text-ranking": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How a tiny model of one model type is made."""

    tokenizer: Callable[[], transformers.PreTrainedTokenizerFast]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the configuration, beside or in place of those that most families share; None leaves one out."""
    body: str = "AutoModel"
    """The auto class of the model without a head."""

    def config(self, model_type: str, vocabulary: int, **changes: Any) -> transformers.PretrainedConfig:
        """Two layers, 32 features, 4 heads, 64 positions."""
        shared = {
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": POSITIONS,
        }
        settings = {**shared, **self.settings, **changes}
        return transformers.AutoConfig.for_model(model_type, **{k: v for k, v in settings.items() if v is not None})


_AFTER_PADDING = {
    "max_position_embeddings": POSITIONS + 2,
    "type_vocab_size": 1,
}  # positions begin after the padding id
_XLNET = {
    "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "hidden_size": None, "num_hidden_layers": None,
    "num_attention_heads": None, "intermediate_size": None, "max_position_embeddings": None,
}  # fmt: skip
_T5 = {
    "decoder_start_token_id": 0,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
_DEBERTA = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0, "position_biased_input": False,
}  # fmt: skip
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4}

FAMILIES: dict[str, Family] = {
    "bert": Family(styles.wordpiece),
    "roberta": Family(styles.byte_level, _AFTER_PADDING),
    "distilbert": Family(lambda: styles.wordpiece(segments=False), {"hidden_dim": 64}),
    "albert": Family(styles.albert, {"embedding_size": 16}),
    "electra": Family(styles.wordpiece, {"embedding_size": 16}),
    "xlm-roberta": Family(styles.unigram, _AFTER_PADDING),
    "camembert": Family(styles.unigram, _AFTER_PADDING),
    "mpnet": Family(styles.mpnet, {"max_position_embeddings": POSITIONS + 2}),
    "deberta": Family(styles.byte_level, _DEBERTA),
    "deberta-v2": Family(
        styles.deberta_v2,
        {**_DEBERTA, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "modernbert": Family(styles.modernbert, {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "nomic_bert": Family(styles.wordpiece),
    "xlnet": Family(styles.xlnet, _XLNET),
    "big_bird": Family(styles.big_bird, {"block_size": 4, "num_random_blocks": 1}),
    "t5": Family(styles.t5, _T5, "AutoModelForTextEncoding"),
    # Families nobody asked for by name that work too.
    "convbert": Family(styles.wordpiece, {"embedding_size": 16, "conv_kernel_size": 3}),
    "data2vec-text": Family(styles.byte_level, _AFTER_PADDING),
    "ernie": Family(styles.wordpiece),
    "esm": Family(styles.unigram, {"position_embedding_type": "rotary", "token_dropout": True}),
    "eurobert": Family(styles.modernbert, {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}),
    "flaubert": Family(styles.unigram, _XLM),
    "fnet": Family(styles.albert, {"type_vocab_size": 4}),
    "gte": Family(styles.wordpiece),
    "ibert": Family(styles.byte_level, _AFTER_PADDING),
    "jina_embeddings_v3": Family(styles.unigram, _AFTER_PADDING),
    "layoutlm": Family(styles.wordpiece),
    "longformer": Family(styles.byte_level, {**_AFTER_PADDING, "attention_window": [4, 8]}),
    "luke": Family(styles.byte_level, {**_AFTER_PADDING, "entity_vocab_size": 8, "entity_emb_size": 16}),
    "megatron-bert": Family(styles.wordpiece),
    "mobilebert": Family(styles.wordpiece, {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}),
    "mt5": Family(styles.t5, _T5, "AutoModelForTextEncoding"),
    "rembert": Family(styles.albert, {"input_embedding_size": 16, "output_embedding_size": 24}),
    "roberta-prelayernorm": Family(styles.byte_level, _AFTER_PADDING),
    "roformer": Family(styles.wordpiece, {"embedding_size": 16}),
    "squeezebert": Family(
        styles.wordpiece,
        {f"{part}_groups": 2 for part in ("q", "k", "v", "intermediate", "output")} | {"embedding_size": 32},
    ),
    "umt5": Family(styles.t5, _T5, "AutoModelForTextEncoding"),
    "xlm": Family(styles.unigram, _XLM),
    "xlm-roberta-xl": Family(styles.unigram, _AFTER_PADDING),
    "xmod": Family(styles.unigram, {**_AFTER_PADDING, "languages": ["en_XX", "de_DE"], "default_language": "de_DE"}),
    # Decoders, whose last token's vector embeds a text.
    "gemma3_text": Family(
        styles.qwen,
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "use_bidirectional_attention": True},
    ),
    "llama": Family(styles.qwen, {"num_key_value_heads": 2}),
    "mistral": Family(styles.qwen, {"num_key_value_heads": 2, "sliding_window": 8}),
    "qwen2": Family(styles.qwen, {"num_key_value_heads": 2}),
    "qwen3": Family(styles.qwen, {"num_key_value_heads": 2, "head_dim": 8}),
}
"""By model type. The first fifteen are those every task is tested with."""


def make_model(folder: Path, family: str, task: str = "feature-extraction", *, seed: int = 0, **changes: Any) -> Path:
    """Save a random model with the head for a task, and return its folder: config, safetensors, tokenizer.

    Args:
        family: a key of FAMILIES.
        changes: of the configuration.
    """
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    made = FAMILIES[family]
    tokenizer = made.tokenizer()
    config = made.config(family, len(tokenizer), **_special_ids(tokenizer), **changes)
    if task in LABELS:
        names = LABELS[task]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    model = getattr(transformers, HEADS.get(task, made.body)).from_config(config)
    disturb(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def disturb(model: torch.nn.Module) -> None:
    """Give all weights a standard deviation of 0.3, whatever the family initialises them to, and move biases and norms
    from their zeros and ones."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
        else:
            parameter.data += 0.2 * torch.randn_like(parameter)


def save_decoder(path: Path) -> Path:
    """Save a LlamaForCausalLM of two layers whose weights have a standard deviation of 0.3."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows a few words and all lower-case letters."""
    return styles.wordpiece()


def bert_config(**changes: Any) -> transformers.BertConfig:
    """Two layers, 32 features."""
    return FAMILIES["bert"].config("bert", len(make_tokenizer()), initializer_range=0.3, **changes)


def make_embedder(
    folder: Path,
    config: transformers.PretrainedConfig | None = None,
    *,
    modules: tuple[str, ...] = ("Pooling", "Normalize"),
    max_seq_length: int = 48,
    prompts: dict[str, str] | None = None,
    include_prompt: bool = True,
    seed: int = 0,
) -> Path:
    """Save a random model as a sentence-transformers folder and return it."""
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_config(config or bert_config())
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, kind in enumerate(modules, 1):
        path = f"{index}_{kind}"
        listed.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir()
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    if "Pooling" in modules:
        pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": include_prompt}
        write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}})
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write a small file as the libraries do."""
    path.write_text(json.dumps(value), encoding="utf-8")


def _special_ids(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, int]:
    roles = ("pad", "bos", "eos", "cls", "sep", "mask")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    return {name: number for name, number in ids.items() if number is not None}
