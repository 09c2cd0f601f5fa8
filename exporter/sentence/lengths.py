"""How long a text may be: what sentence-transformers cuts at, and what the model has positions for."""

from __future__ import annotations

from typing import Any

from onnxpress.exporter.sentence.config import SentenceConfig

UNLIMITED_LENGTH = 2**20
"""Stands for "no limit" in `effective_max_length`: twice the characters of the longest text the runtime accepts."""

# Models whose positions begin after that of the padding token, so that their table holds fewer than it has rows.
_POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def effective_max_length(
    config: SentenceConfig | None, model_config: Any, tokenizer_model_max_length: int | None
) -> int:
    """Tokens, special ones included, after which sentence-transformers cuts a text, and never more than work.

    That is `max_seq_length` where the folder says one, also beyond `max_position_embeddings`; else the smaller of the
    tokenizer's limit and `max_position_embeddings`. Sentence-transformers then fails on texts that need more
    positions than the model has (roberta: 512 of 514); this bound, `position_limit`, is ours.

    Args:
        config: what the folder says, None without modules.json.
        model_config: the transformers configuration of the transformer.
        tokenizer_model_max_length: as the tokenizer's own files give it.
    """
    positions = _max_position_embeddings(model_config)
    if config is not None and config.max_seq_length is not None:
        length = config.max_seq_length
    else:
        length = min(tokenizer_model_max_length or UNLIMITED_LENGTH, positions or UNLIMITED_LENGTH)
    return int(min(length, position_limit(model_config) or UNLIMITED_LENGTH, UNLIMITED_LENGTH))


def position_limit(model_config: Any) -> int | None:
    """Tokens for which the model has positions; None when it computes them, as with rotary or relative ones."""
    positions = _max_position_embeddings(model_config)
    computed = (
        getattr(model_config, "rope_parameters", None)
        or getattr(model_config, "position_embedding_type", "absolute") == "rotary"
        or not getattr(model_config, "position_biased_input", True)  # deberta: relative positions only
    )
    if positions is None or computed:
        return None
    if model_config.model_type == "mpnet":
        return positions - 2  # whatever its padding token is
    if model_config.model_type in _POSITIONS_AFTER_PADDING:
        return positions - (model_config.pad_token_id or 0) - 1
    return positions


def _max_position_embeddings(model_config: Any) -> int | None:
    positions = getattr(model_config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None  # xlnet has -1 for "no limit"
