"""Small tokenizers in the styles of the families: their pieces, special tokens, text pairs, segments and padding.

They know a few words and all lower-case letters (the byte-level ones: all bytes). Special tokens are given by the role
transformers has for them, in the order of the vocabulary.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

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
    "##ed",
    ".",
    ",",
    "?",
)
POSITIONS = 64

BERT = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
ROBERTA = {
    "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>",
    "mask_token": "<mask>",
}  # fmt: skip
BERT_TEXT, BERT_PAIR = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
ROBERTA_TEXT, ROBERTA_PAIR = "<s> $A </s>", "<s> $A </s> </s> $B </s>"


def _wordpieces(special: Mapping[str, str]) -> tuple[str, ...]:
    letters = string.ascii_lowercase
    return (*special.values(), *letters, *(f"##{letter}" for letter in letters), *WORDS)


VOCABULARY = _wordpieces(BERT)


def wordpiece(
    special: Mapping[str, str] = BERT, text: str = BERT_TEXT, pair: str = BERT_PAIR, *, segments: bool = True
) -> transformers.PreTrainedTokenizerFast:
    """BERT and those that took over its pieces."""
    ids = {piece: index for index, piece in enumerate(_wordpieces(special))}
    backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=special["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _tokenizer(backend, special, text, pair, segments)


def byte_level(
    special: Mapping[str, str] = ROBERTA, text: str = ROBERTA_TEXT, pair: str = ROBERTA_PAIR
) -> transformers.PreTrainedTokenizerFast:
    """RoBERTa, ModernBERT, Qwen: byte pairs."""
    merges = []
    for word in WORDS:
        made = "Ġ"
        for letter in word:
            merges.append((made, letter))
            made += letter
    pieces = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    ids = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(models.BPE(ids, list(dict.fromkeys(merges))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _tokenizer(backend, special, text, pair, segments=False)


def unigram(
    special: Mapping[str, str] = ROBERTA,
    text: str = ROBERTA_TEXT,
    pair: str = ROBERTA_PAIR,
    *,
    segments: bool = False,
    **settings: Any,
) -> transformers.PreTrainedTokenizerFast:
    """XLM-RoBERTa, ALBERT, T5, DeBERTa-v2, XLNet: SentencePiece's unigram model. `settings`: of the tokenizer."""
    tokens = list(dict.fromkeys(special.values()))
    words = [(f"▁{word}", -3.0) for word in WORDS if word.isalpha()]
    letters = [(letter, -8.0) for letter in (*string.ascii_lowercase, ".", ",", "?")]
    backend = tokenizers.Tokenizer(
        models.Unigram(
            [*((token, 0.0) for token in tokens), ("▁", -2.0), *words, *letters],
            unk_id=tokens.index(special["unk_token"]),
            byte_fallback=False,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _tokenizer(backend, special, text, pair, segments, **settings)


def mpnet() -> transformers.PreTrainedTokenizerFast:
    """BERT's pieces between RoBERTa's special tokens: padding has id 1."""
    special = {role: token for role, token in ROBERTA.items() if role != "eos_token"}
    return wordpiece(special, ROBERTA_TEXT, ROBERTA_PAIR, segments=False)


def funnel() -> transformers.PreTrainedTokenizerFast:
    """BERT's pieces; the first token is a segment of its own."""
    return wordpiece(BERT, "[CLS]:2 $A [SEP]", "[CLS]:2 $A [SEP] $B:1 [SEP]:1")


def modernbert() -> transformers.PreTrainedTokenizerFast:
    """Byte pairs between BERT's special tokens; no segments."""
    return byte_level(BERT, BERT_TEXT, "[CLS] $A [SEP] $B [SEP]")


def albert() -> transformers.PreTrainedTokenizerFast:
    """Unigram between BERT's special tokens, with segments."""
    special = {**BERT, "pad_token": "<pad>", "unk_token": "<unk>"}
    return unigram(special, BERT_TEXT, BERT_PAIR, segments=True)


def deberta_v2() -> transformers.PreTrainedTokenizerFast:
    """Unigram between BERT's special tokens in an order of its own, with segments that the model does not read."""
    special = {role: BERT[role] for role in ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")}
    return unigram(special, BERT_TEXT, BERT_PAIR, segments=True)


def big_bird() -> transformers.PreTrainedTokenizerFast:
    """Unigram between BERT's special tokens; the pair has segments, which the tokenizer keeps to itself."""
    special = {**BERT, "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return unigram(special, BERT_TEXT, BERT_PAIR)


def t5() -> transformers.PreTrainedTokenizerFast:
    """Unigram; nothing before a text, one token after it."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return unigram(special, "$A </s>", "$A </s> $B </s>")


def xlnet() -> transformers.PreTrainedTokenizerFast:
    """Unigram; padding on the left, the classifier's token at the end and of segment 2."""
    special = {
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<cls>", "sep_token": "<sep>",
        "pad_token": "<pad>", "mask_token": "<mask>",
    }  # fmt: skip
    return unigram(
        special,
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
        segments=True,
        padding_side="left",
    )


def qwen() -> transformers.PreTrainedTokenizerFast:
    """Byte pairs; only an end, which is also the padding."""
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return byte_level(special, "$A <|endoftext|>", "$A $B <|endoftext|>")


def _tokenizer(
    backend: tokenizers.Tokenizer, special: Mapping[str, str], text: str, pair: str, segments: bool, **settings: Any
) -> transformers.PreTrainedTokenizerFast:
    used = [token for token in dict.fromkeys(special.values()) if token in f"{text} {pair}"]
    backend.post_processor = processors.TemplateProcessing(
        single=text, pair=pair, special_tokens=[(token, backend.token_to_id(token)) for token in used]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
        **special,
        **settings,
    )
