"""The models of bench/gpu.py, with random weights: an encoder in BERT-base's shape, a decoder in that of a Llama of 135
million parameters, and small ones that show on any machine that the benchmark itself works."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bench.generating.models import SHAPE

FULL_ENCODER: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
SMALL_ENCODER = {
    **FULL_ENCODER,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 500,
}
SMALL_DECODER = {
    **SHAPE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 500,
}
VARIANT = "fp16"
_SPECIAL = ("[PAD]", "[UNK]")


@dataclasses.dataclass(frozen=True)
class Pressed:
    """A model and its bundle."""

    model: Path
    bundle: Path
    vocabulary: int


def make_encoder(folder: Path, small: bool) -> Pressed:
    """BERT with mean pooling, and a tokenizer with a word for each token."""
    import torch
    import transformers

    shape = SMALL_ENCODER if small else FULL_ENCODER

    def model() -> Any:
        torch.manual_seed(0)
        return transformers.BertModel(transformers.BertConfig(**shape))

    return _press(folder / ("small-encoder" if small else "encoder"), shape, model)


def make_decoder(folder: Path, small: bool) -> Pressed:
    """A Llama, as bench/generate.py has it."""
    import torch
    import transformers

    shape = SMALL_DECODER if small else SHAPE

    def model() -> Any:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, initializer_range=0.04))

    return _press(folder / ("small-decoder" if small else "decoder"), shape, model)


def _press(folder: Path, shape: dict[str, Any], make: Any) -> Pressed:
    from onnxpress.exporter import ExportConfig, export

    pressed = Pressed(folder / "model", folder / "bundle", shape["vocab_size"])
    if not (pressed.model / "tokenizer.json").is_file():
        make().save_pretrained(pressed.model)
        _save_tokenizer(pressed.model, shape["vocab_size"])
    if not (pressed.bundle / "onnxpress.json").is_file():
        config = ExportConfig(target="cuda", variants=(VARIANT,), measure="none")
        export(str(pressed.model), pressed.bundle, config)
    return pressed


def _save_tokenizer(folder: Path, size: int) -> None:
    import tokenizers
    import transformers

    words = [*_SPECIAL, *(f"w{index}" for index in range(len(_SPECIAL), size))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=512
    ).save_pretrained(folder)
