"""Tiny tokenizers with the decoders that language models have, and a few that they could have."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WORDS = ["the", "hello", "he", "llo", "中", "é", "a", "b", ".", "\ufffd"]


def byte_level(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every byte, and merges of some, also of the first bytes of an emoji."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("Ġ", "the"), ("t", "he"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("Ġ", "a"), ("l", "l"), ("è", "½")]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    tokens[-len(merges) :] = ["he", "Ġthe", "the", "ðŁ", "ðŁĺ", "Ġa", "ll", "è½"]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoder or decoders.ByteLevel()
    return _with_added(tokenizer)


def byte_fallback(strip: bool = True) -> Tokenizer:
    """As Llama 2 and Mistral (which strip a space at the start) and Gemma (which does not)."""
    words = ["▁", *("▁" + word for word in WORDS), *WORDS, "▁▁"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return _with_added(tokenizer)


def words(decoder: decoders.Decoder | None, vocabulary: list[str]) -> Tokenizer:
    """Whole words, with any decoder."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    return _with_added(tokenizer)


DECODERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level in a sequence": lambda: byte_level(decoders.Sequence([decoders.ByteLevel()])),
    "byte-level and more": lambda: byte_level(decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])),
    "byte fallback, stripped": byte_fallback,
    "byte fallback": lambda: byte_fallback(strip=False),
    "WordPiece": lambda: words(decoders.WordPiece(), ["[UNK]", "the", "##s", "##'", "'", ".", ",", "n't", "do", "##"]),
    "Metaspace": lambda: words(decoders.Metaspace(), ["<unk>", "▁the", "▁", "s", "▁▁a", "."]),
    "Metaspace without a first space": lambda: words(
        decoders.Metaspace(prepend_scheme="never"), ["<unk>", "▁the", "▁", "s"]
    ),
    "BPE with ends of words": lambda: words(decoders.BPEDecoder(), ["<unk>", "the</w>", "a", "b</w>", "</w>"]),
    "no decoder": lambda: words(None, ["<unk>", "the", "a"]),
}


def _with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<｜end▁of｜>")])
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("é!"), AddedToken("new 中")])
    return tokenizer
