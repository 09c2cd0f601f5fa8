"""Everything a sentence-transformers folder says, read and built: `reading` -> `config` -> `head`, and `lengths`.

config = read_sentence_config(folder) or default_sentence_config(folder)
head = build_head(folder, config, hidden_size)
embedding = head(token_embeddings, attention_mask, pooling_mask)
"""

from onnxpress.exporter.sentence.config import SentenceConfig
from onnxpress.exporter.sentence.head import build_head
from onnxpress.exporter.sentence.lengths import effective_max_length, position_limit
from onnxpress.exporter.sentence.reading import default_sentence_config, read_sentence_config

__all__ = [
    "SentenceConfig",
    "build_head",
    "default_sentence_config",
    "effective_max_length",
    "position_limit",
    "read_sentence_config",
]
