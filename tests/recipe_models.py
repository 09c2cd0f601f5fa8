"""For each recipe a tiny random model of its architecture, saved as it lies on the hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from onnxpress.exporter.recipe import Recipe
from tests.models import VOCABULARY, write_json

POSITIONS = 64
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    # Far more than models begin with: else two layers hardly notice positions and masks.
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
# How real models of these architectures differ from the defaults of their configuration.
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"hidden_dim": 64},
    "nomic_bert": {},
    # Their positions are counted from behind the padding token's id.
    "mpnet": {"max_position_embeddings": POSITIONS + 2},
    "roberta": {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "xlm-roberta": {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "modernbert": {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "local_attention": 16},
    "deberta-v2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "max_relative_positions": -1,
    },
}
_CLASSES = {
    "feature-extraction": transformers.AutoModel,
    "text-classification": transformers.AutoModelForSequenceClassification,
    "zero-shot-classification": transformers.AutoModelForSequenceClassification,
    "text-ranking": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "fill-mask": transformers.AutoModelForMaskedLM,
}
UNIGRAM = ("multilingual-e5-small", "paraphrase-multilingual-MiniLM-L12-v2", "bge-reranker-v2-m3")
"""Recipes of models with the tokenizer of XLM-RoBERTa."""


def make_recipe_model(folder: Path, recipe: Recipe, words: Iterable[str] = ()) -> Path:
    """Save a random model as the recipe describes it and return its folder.

    Args:
        folder: where; it is created.
        recipe: what architecture, for which task, with which labels.
        words: words that are one token each, beside those of every tiny model.
    """
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    vocabulary = list(dict.fromkeys([*VOCABULARY, *(word.lower() for word in words)]))
    settings = _SIZES | _ARCHITECTURES[recipe.model_type] | {"vocab_size": len(vocabulary)}
    labels = ("LABEL_0",) if recipe.task == "text-ranking" else recipe.labels
    if labels is not None:
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = _CLASSES[recipe.task].from_config(transformers.AutoConfig.for_model(recipe.model_type, **settings))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms, made as zeros and ones: a graph that drops them would pass too
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    _tokenizer(vocabulary, unigram=recipe.name in UNIGRAM).save_pretrained(folder)
    if recipe.task == "feature-extraction":
        _save_pooling(folder)
    return folder


def _tokenizer(vocabulary: list[str], unigram: bool) -> transformers.PreTrainedTokenizerFast:
    if unigram:
        scores = [(word, 0.0 if word.startswith("[") else -1.0 - 1 / (1 + len(word))) for word in vocabulary]
        backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=1, byte_fallback=False))
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        entries = {word: index for index, word in enumerate(vocabulary)}
        backend = tokenizers.Tokenizer(models.WordPiece(entries, unk_token="[UNK]"))
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


def _save_pooling(folder: Path) -> None:
    names = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (name, path) in enumerate(zip(names, paths, strict=True))
        ],
    )
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": POSITIONS, "do_lower_case": False})
