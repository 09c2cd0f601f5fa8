"""Tiny random models, saved as users have them.

Weights have a standard deviation of 0.3: with the default of 0.02 a two-layer model hardly notices positions and masks,
and a test that breaks them would pass.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "the",
    "order",
    "was",
    "not",
    "sent",
    "cat",
    "dog",
    "where",
    "is",
    "my",
    "parcel",
    "##s",
    "##ed",
    ".",
    ",",
    "?",
)
VOCABULARY = (*SPECIAL, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *WORDS)
POSITIONS = 64


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows a few words and all lower-case letters."""
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
    )


def bert_config(**changes: Any) -> transformers.BertConfig:
    """Two layers, 32 features."""
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
    }
    return transformers.BertConfig(**{**settings, **changes})


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
        if parameter.ndim == 1:  # biases and norms, made as zeros and ones: a graph that drops them would pass too
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
