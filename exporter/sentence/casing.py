"""Lower-casing that a sentence-transformers folder asks for, put into the tokenizer itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxpress.exporter.sentence.config import SentenceConfig

if TYPE_CHECKING:
    import tokenizers


def add_lower_case(backend: tokenizers.Tokenizer, sentence: SentenceConfig) -> None:
    """Let a tokenizer lower its texts where the folder says so and it does not do so yet. Not `str.lower()`, which
    treats a final sigma and special tokens written in a text differently."""
    from tokenizers import normalizers

    if not sentence.do_lower_case or "Lowercase" in repr(backend.normalizer):
        return
    lower = normalizers.Lowercase()
    backend.normalizer = normalizers.Sequence([lower, backend.normalizer]) if backend.normalizer else lower
