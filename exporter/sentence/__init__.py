"""Everything a sentence-transformers folder says, read and built: `reading` -> `config` -> `head`, and `lengths`.

Only `build_head` needs PyTorch, which is imported with it.

config = read_sentence_config(folder) or default_sentence_config(folder)
head = build_head(folder, config, hidden_size)
embedding = head(token_embeddings, attention_mask, pooling_mask)
"""

from typing import TYPE_CHECKING, Any

from onnxpress.exporter.sentence.casing import add_lower_case
from onnxpress.exporter.sentence.config import SentenceConfig
from onnxpress.exporter.sentence.lengths import effective_max_length, position_limit
from onnxpress.exporter.sentence.reading import default_sentence_config, read_sentence_config

if TYPE_CHECKING:
    from onnxpress.exporter.sentence.head import build_head

__all__ = [
    "SentenceConfig",
    "add_lower_case",
    "build_head",
    "default_sentence_config",
    "effective_max_length",
    "position_limit",
    "read_sentence_config",
]


def __getattr__(name: str) -> Any:
    if name == "build_head":
        from onnxpress.exporter.sentence.head import build_head

        return build_head
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
