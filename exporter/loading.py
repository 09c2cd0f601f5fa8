"""A source folder to the model that computes exactly what the graph shall compute, in PyTorch, and its tokenizer."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.families import repeatable
from onnxpress.exporter.heads import Head, make_head, make_sentence_head
from onnxpress.exporter.reference import Limits
from onnxpress.exporter.refusals import refuse_missing_head
from onnxpress.exporter.sentence import (
    add_lower_case,
    default_sentence_config,
    effective_max_length,
    position_limit,
    read_sentence_config,
)
from onnxpress.exporter.source import Source, transformer_folder
from onnxpress.exporter.tasks import model_class
from onnxpress.exporter.tokenizer_files import require_tokenizer
from onnxpress.quantize.graphs import save_program
from onnxpress.runtime.encoder import FloatArray
from onnxpress.runtime.errors import UnsupportedModelError, first_line
from onnxpress.runtime.manifest import TaskSettings, Tensor, TokenizerSettings

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in PyTorch float32, evaluation mode: a `Reference`."""

    module: nn.Module
    """Graph inputs as keyword arguments to graph outputs by name (see `heads.py`)."""
    tokenizer: Any
    """A transformers tokenizer backed by the `tokenizers` library."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    limits: Limits
    settings: TaskSettings
    model_type: str
    architecture: str
    parameters: int
    notes: tuple[str, ...] = ()

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """See `Reference`."""
        backend: tokenizers.Tokenizer = self.tokenizer.backend_tokenizer
        return backend

    @property
    def input_axes(self) -> Mapping[str, str]:
        """The second axis of each input; the first is `batch`."""
        return {tensor.name: tensor.shape[1] for tensor in self.inputs}

    def compute(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        """See `Reference`."""
        with torch.inference_mode(), repeatable(self.module):
            tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
            return {name: value.float().numpy() for name, value in self.module(**tensors).items()}

    def write_graph(self, path: Path) -> None:
        """See `Reference`; the model is traced."""
        from onnxpress.exporter.tracing import trace

        save_program(trace(self), path)


def load_model(source: Source, task: str, config: ExportConfig) -> LoadedModel:
    """Load weights and tokenizer.

    Raises:
        UnsupportedModelError: transformers cannot load the model, weights are missing from the checkpoint, the head
            does not fit the task, or the tokenizer has no `tokenizers` form.
    """
    if not source.config.get("auto_map"):  # code that comes with a model may have heads that transformers has not
        refuse_missing_head(str(source.config.get("model_type")), source.name, task)
    transformer = load_transformer(source, task, config)
    tokenizer = load_tokenizer(source, config)
    sentence = read_sentence_config(source.folder) if task == "feature-extraction" else None
    sentence = sentence or default_sentence_config(source.folder)
    add_lower_case(tokenizer.backend_tokenizer, sentence)
    max_length = effective_max_length(sentence, transformer.config, tokenizer.model_max_length)
    # Written into tokenizer.json, where the runtime finds the side at which texts are cut.
    tokenizer.backend_tokenizer.enable_truncation(max_length, direction=tokenizer.truncation_side)
    if task == "feature-extraction":
        prompts = source.recipe.prompts if source.recipe else None
        head = make_sentence_head(transformer, source.folder, sentence, prompts, config.allow_pickle)
    else:
        head = make_head(task, transformer, tokenizer, source)
    settings = transformer.config.get_text_config()
    return LoadedModel(
        module=head.module.eval().requires_grad_(False),
        tokenizer=tokenizer,
        inputs=_inputs(transformer, tokenizer, head),
        outputs=tuple(Tensor(name, "float", axes) for name, axes in head.outputs.items()),
        limits=Limits(
            positions=position_limit(transformer.config) or max_length,
            vocabulary=transformer.get_input_embeddings().weight.shape[0],
            heads=getattr(settings, "num_attention_heads", None) or 1,
        ),
        settings=TaskSettings(
            task=task,
            tokenizer=TokenizerSettings(
                file="tokenizer.json",
                max_length=max_length,
                pad_id=tokenizer.pad_token_id or 0,
                padding_side=tokenizer.padding_side,
                pad_type_id=tokenizer.pad_token_type_id,
            ),
            embedding=head.embedding,
            labels=head.labels,
            mask=head.mask,
        ),
        model_type=str(transformer.config.model_type),
        architecture=type(transformer).__name__,
        parameters=sum(parameter.numel() for parameter in head.module.parameters()),
    )


def load_transformer(source: Source, task: str, config: ExportConfig) -> Any:
    """The transformers model with the head for a task, float32, in evaluation mode, every weight from the checkpoint.

    Raises:
        UnsupportedModelError: transformers cannot load it, or weights are missing.
    """
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
            f"the weights of {source.name} lack {len(names)} tensors that {type(model).__name__} asks for, such as "
            f"{names[0]}; they would be random - give the right folder or --task (this one was {task})"
        )
    return model


def load_tokenizer(source: Source, config: ExportConfig) -> Any:
    """The model's tokenizer, backed by the `tokenizers` library.

    Raises:
        UnsupportedModelError: there is none, or it has no such form.
    """
    require_tokenizer(transformer_folder(source.folder))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            transformer_folder(source.folder),
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
        )
    except Exception as error:
        raise UnsupportedModelError(
            f"the tokenizer of {source.name} cannot be loaded: {first_line(error)}; is tokenizer.json there?"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedModelError(
            f"the tokenizer of {source.name} ({type(tokenizer).__name__}) is pure Python and has no tokenizer.json "
            "form, which the runtime needs"
        )
    return tokenizer


def _inputs(transformer: Any, tokenizer: Any, head: Head) -> tuple[Tensor, ...]:
    axes = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "sequence")}
    # Segments: what transformers' tokenizer gives and the model tells apart. XLNet has no table of them to count.
    takes_types = "token_type_ids" in inspect.signature(transformer.forward).parameters
    gives_types = "token_type_ids" in tokenizer.model_input_names
    if takes_types and gives_types and getattr(transformer.config, "type_vocab_size", 2) > 1:
        axes["token_type_ids"] = ("batch", "sequence")
    return tuple(Tensor(name, "int64", shape) for name, shape in {**axes, **head.further_inputs}.items())


def _cannot_load(source: Source, error: Exception) -> UnsupportedModelError:
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        return UnsupportedModelError(
            f"{source.name} needs Python code that comes with it; give --trust-remote-code if you trust its author"
        )
    return UnsupportedModelError(f"transformers {transformers.__version__} cannot load {source.name}: {reason}")
