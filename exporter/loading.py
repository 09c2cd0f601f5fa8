"""A source folder to a PyTorch model that computes exactly what the graph shall compute, and its tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
import transformers
from torch import nn

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.sentence import (
    SentenceConfig,
    build_head,
    default_sentence_config,
    effective_max_length,
    position_limit,
    read_sentence_config,
)
from onnxpress.exporter.source import Source, transformer_folder
from onnxpress.exporter.tasks import model_class
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.manifest import EmbeddingSettings, TokenizerSettings


class SentenceEncoder(nn.Module):
    """Transformer, pooling and what follows, in one forward: the module that is traced and compared against."""

    def __init__(self, transformer: nn.Module, head: nn.Module, uses_pooling_mask: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head
        self.uses_pooling_mask = uses_pooling_mask
        self.config = transformer.config  # the exporter reads it as it would a transformers model's

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            input_ids: int64 [batch, sequence].
            attention_mask: int64 [batch, sequence], 1 for tokens and 0 for padding.
            token_type_ids: int64 [batch, sequence], for models that have segments.
            pooling_mask: int64 [batch, sequence], for models whose prompts stay out of pooling.

        Returns:
            `sentence_embedding`: float32 [batch, dimension].
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.transformer(**inputs).last_hidden_state
        return {"sentence_embedding": self.head(hidden, attention_mask, pooling_mask)}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in PyTorch float32, evaluation mode, with what the bundle must know about it."""

    module: SentenceEncoder
    tokenizer: Any
    """A transformers tokenizer backed by the `tokenizers` library."""
    input_names: tuple[str, ...]
    max_positions: int
    """Tokens the graph can take at most."""
    vocabulary: int
    tokenizer_settings: TokenizerSettings
    embedding: EmbeddingSettings
    architecture: str
    parameters: int


def load_model(source: Source, task: str, config: ExportConfig) -> LoadedModel:
    """Load weights and tokenizer.

    Raises:
        UnsupportedModelError: transformers cannot load the model, weights are missing from the checkpoint, or the
            tokenizer has no `tokenizers` form.
    """
    transformer = _load_transformer(source, task, config)
    tokenizer = _load_tokenizer(source, config)
    sentence = read_sentence_config(source.folder) or default_sentence_config(source.folder)
    _add_lower_case(tokenizer, sentence)
    hidden_size = transformer.config.get_text_config().hidden_size
    head = build_head(source.folder, sentence, hidden_size, allow_pickle=config.allow_pickle)
    max_length = effective_max_length(sentence, transformer.config, tokenizer.model_max_length)
    # Written into tokenizer.json, where the runtime finds the side at which texts are cut.
    tokenizer.backend_tokenizer.enable_truncation(max_length, direction=tokenizer.truncation_side)
    uses_pooling_mask = not sentence.include_prompt
    module = SentenceEncoder(transformer, head, uses_pooling_mask).eval().requires_grad_(False)
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        input_names=_input_names(transformer, uses_pooling_mask),
        max_positions=position_limit(transformer.config) or max_length,
        vocabulary=transformer.get_input_embeddings().num_embeddings,
        tokenizer_settings=TokenizerSettings(
            file="tokenizer.json",
            max_length=max_length,
            pad_id=tokenizer.pad_token_id or 0,
        ),
        embedding=_embedding_settings(module, sentence, hidden_size),
        architecture=type(transformer).__name__,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def _load_transformer(source: Source, task: str, config: ExportConfig) -> Any:
    folder = transformer_folder(source.folder)
    try:
        model, report = model_class(task, source).from_pretrained(
            folder,
            dtype=torch.float32,
            # The form every version of onnxruntime and the fusions recognise; exact either way.
            attn_implementation="sdpa",
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
            use_safetensors=None if config.allow_pickle else True,
            output_loading_info=True,
        )
    except ValueError as error:
        if "attn_implementation" not in str(error) and "scaled_dot_product" not in str(error):
            raise _cannot_load(source, error) from error
        model, report = model_class(task, source).from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=config.trust_remote_code, local_files_only=True,
            use_safetensors=None if config.allow_pickle else True, output_loading_info=True,
        )  # fmt: skip
    # transformers, safetensors and remote code raise many types; each means the same to the user.
    except Exception as error:
        raise _cannot_load(source, error) from error
    # A pooler that the checkpoint lacks is never used: pooling is ours, and the graph drops what nothing reads.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        names = missing or [str(entry) for entry in report["mismatched_keys"]]
        raise UnsupportedModelError(
            f"the weights of {source.name} lack {len(names)} tensors its configuration asks for, such as {names[0]}; "
            "they would be random - give the right folder or --task"
        )
    return model


def _load_tokenizer(source: Source, config: ExportConfig) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            transformer_folder(source.folder),
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
        )
    except Exception as error:
        raise UnsupportedModelError(
            f"the tokenizer of {source.name} cannot be loaded: {_first_line(error)}; is tokenizer.json there?"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"the tokenizer of {source.name} ({type(tokenizer).__name__}) is pure Python and has no tokenizer.json "
            "form, which the runtime needs"
        )
    return tokenizer


def _input_names(transformer: Any, uses_pooling_mask: bool) -> tuple[str, ...]:
    names = ["input_ids", "attention_mask"]
    if getattr(transformer.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return (*names, "pooling_mask") if uses_pooling_mask else tuple(names)


def _embedding_settings(module: SentenceEncoder, sentence: SentenceConfig, hidden_size: int) -> EmbeddingSettings:
    with torch.no_grad():
        ones = torch.ones(1, 2, dtype=torch.int64)
        vector = module.head(torch.zeros(1, 2, hidden_size), ones, ones)
    return EmbeddingSettings(
        dimension=int(vector.shape[-1]),
        modules=sentence.modules,
        normalized=sentence.normalize,
        similarity=sentence.similarity,
        include_prompt=sentence.include_prompt,
        prompts=dict(sentence.prompts),
        default_prompt_name=sentence.default_prompt_name,
    )


def _add_lower_case(tokenizer: Any, sentence: SentenceConfig) -> None:
    """Put lower-casing into the tokenizer itself where the folder asks for it. Not `str.lower()`, which treats a final
    sigma and special tokens written in a text differently."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    if not sentence.do_lower_case or "Lowercase" in repr(backend.normalizer):
        return
    lower = normalizers.Lowercase()
    backend.normalizer = normalizers.Sequence([lower, backend.normalizer]) if backend.normalizer else lower


def _cannot_load(source: Source, error: Exception) -> UnsupportedModelError:
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        return UnsupportedModelError(
            f"{source.name} needs Python code that comes with it; give --trust-remote-code if you trust its author"
        )
    return UnsupportedModelError(f"transformers {transformers.__version__} cannot load {source.name}: {reason}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def reference_outputs(model: LoadedModel, feeds: dict[str, Any]) -> Any:
    """What PyTorch computes for numpy graph inputs: `sentence_embedding` as float32 array [batch, dimension]."""
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        return cast(torch.Tensor, model.module(**tensors)["sentence_embedding"]).numpy()
