"""A transformers model with its head, for each task: the module that is traced, and what its outputs mean.

Every module takes `input_ids` and `attention_mask`, int64 [batch, sequence], `token_type_ids` where the model has
segments and the further inputs named in `further_inputs`; it returns its outputs by name, float32.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxpress.exporter.labels import label_settings
from onnxpress.exporter.sentence import SentenceConfig, build_head
from onnxpress.exporter.source import Source
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.manifest import EmbeddingSettings, LabelSettings, MaskSettings

Axes = dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Head:
    """A task's module and what the bundle must know about it."""

    module: nn.Module
    outputs: Axes
    """Axes of each output: names, or sizes written as text."""
    further_inputs: Axes = dataclasses.field(default_factory=dict)
    """Axes of the inputs beside those every model has."""
    embedding: EmbeddingSettings | None = None
    labels: LabelSettings | None = None
    mask: MaskSettings | None = None


class SentenceEncoder(nn.Module):
    """Transformer, pooling and what follows: `sentence_embedding` [batch, dimension]."""

    def __init__(self, transformer: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head
        self.config = transformer.config  # the exporter reads it as it would a transformers model's

    def forward(self, pooling_mask: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """`pooling_mask`: int64 [batch, sequence], for models whose prompts stay out of pooling."""
        hidden = self.transformer(**inputs).last_hidden_state
        return {"sentence_embedding": self.head(hidden, inputs["attention_mask"], pooling_mask)}


class WithLogits(nn.Module):
    """A transformers model whose outputs are given as they are."""

    def __init__(self, transformer: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.transformer = transformer
        self.names = names
        self.config = transformer.config

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The named outputs."""
        outputs = self.transformer(**inputs, return_dict=True)
        return {name: outputs[name] for name in self.names}


class MaskFiller(nn.Module):
    """A masked language model that scores the vocabulary at the masked positions only: `logits` [batch, masks, v].

    A whole [sequence, vocabulary] product would be most of the work of a small model. The hidden states are picked on
    their way from the encoder to the head, which treats every position alike.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.config = transformer.config

    def forward(self, mask_positions: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """`mask_positions`: int64 [batch, masks], positions in the sequence."""

        def pick(module: nn.Module, arguments: Any, output: Any) -> Any:
            hidden = output.last_hidden_state  # [batch, sequence, h]
            index = mask_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)  # [batch, masks, h]
            return output

        hook = self.transformer.base_model.register_forward_hook(pick)
        try:
            return {"logits": self.transformer(**inputs, return_dict=True).logits}
        finally:
            hook.remove()


def make_head(task: str, transformer: Any, tokenizer: Any, source: Source) -> Head:
    """The module around a loaded transformers model, for a task other than feature-extraction.

    Raises:
        UnsupportedModelError: the model's head does not fit the task.
    """
    if task == "fill-mask":
        if tokenizer.mask_token_id is None:
            raise UnsupportedModelError(
                f"the tokenizer of {source.name} has no mask token, so it cannot fill masks; give another --task"
            )
        return Head(
            MaskFiller(transformer),
            outputs={"logits": ("batch", "masks", str(transformer.config.vocab_size))},
            further_inputs={"mask_positions": ("batch", "masks")},
            mask=MaskSettings(str(tokenizer.mask_token), int(tokenizer.mask_token_id)),
        )
    if task == "question-answering":
        names = ("start_logits", "end_logits")
        return Head(WithLogits(transformer, names), outputs=dict.fromkeys(names, ("batch", "sequence")))
    labels = label_settings(task, source)
    assert labels is not None
    if len(labels.names) != transformer.config.num_labels:
        raise UnsupportedModelError(
            f"config.json of {source.name} names {len(labels.names)} labels, its head has "
            f"{transformer.config.num_labels}"
        )
    width = str(len(labels.names))
    axes = ("batch", "sequence", width) if task == "token-classification" else ("batch", width)
    return Head(WithLogits(transformer, ("logits",)), outputs={"logits": axes}, labels=labels)


def make_sentence_head(
    transformer: Any, folder: Path, sentence: SentenceConfig, prompts: dict[str, str] | None, allow_pickle: bool
) -> Head:
    """The module of a sentence embedder: the transformer and all that the folder says follows it.

    Args:
        transformer: the transformers model.
        folder: where `sentence` was read.
        sentence: what the folder says.
        prompts: used in place of the folder's, where given.
        allow_pickle: read weights stored as pickles.
    """
    hidden_size = transformer.config.get_text_config().hidden_size
    head = build_head(folder, sentence, hidden_size, allow_pickle=allow_pickle)
    with torch.no_grad():
        ones = torch.ones(1, 2, dtype=torch.int64)
        dimension = int(head(torch.zeros(1, 2, hidden_size), ones, ones).shape[-1])
    return Head(
        SentenceEncoder(transformer, head),
        outputs={"sentence_embedding": ("batch", str(dimension))},
        further_inputs={} if sentence.include_prompt else {"pooling_mask": ("batch", "sequence")},
        embedding=EmbeddingSettings(
            dimension=dimension,
            modules=sentence.modules,
            normalized=sentence.normalize,
            similarity=sentence.similarity,
            include_prompt=sentence.include_prompt,
            prompts={**sentence.prompts, **(prompts or {})},
            default_prompt_name=sentence.default_prompt_name,
        ),
    )
