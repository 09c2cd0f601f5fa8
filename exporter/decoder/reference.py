"""A decoder and its tokenizer in PyTorch, as what variants are made from and compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.decoder.tracing import DecoderFacts, describe_decoder, trace_decoder
from onnxpress.exporter.loading import load_tokenizer, load_transformer
from onnxpress.exporter.reference import Limits
from onnxpress.exporter.source import Source, read_json, transformer_folder
from onnxpress.runtime.encoder import FloatArray
from onnxpress.runtime.generation.perplexity import Array, Window, log_likelihoods_of
from onnxpress.runtime.generation.replay import LOGITS_BYTES, rows_of
from onnxpress.runtime.manifest import GenerationSettings, TaskSettings, Tensor, TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

# Of generation_config.json: what changes which tokens are chosen, and how many.
_DEFAULTS = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens",
)  # fmt: skip
# And what else there changes answers in transformers, with the values that change nothing.
_UNHEEDED: dict[str, Any] = {
    "min_length": 0, "min_new_tokens": 0, "stop_strings": None, "max_time": None, "num_beams": 1, "penalty_alpha": 0.0,
    "typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None, "guidance_scale": 1.0, "watermarking_config": None,
}  # fmt: skip
_BATCH = 16  # prompts that PyTorch continues together


@dataclasses.dataclass(frozen=True)
class LoadedDecoder:
    """A decoder in PyTorch float32, evaluation mode: a `Reference`."""

    model: Any
    tokenizer: Any
    facts: DecoderFacts
    settings: TaskSettings
    notes: tuple[str, ...]

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """See `Reference`."""
        backend: tokenizers.Tokenizer = self.tokenizer.backend_tokenizer
        return backend

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """See `Reference`; keys and values of each layer follow the tokens."""
        tokens = [Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "position_ids")]
        sizes = [
            Tensor("logit_index", "int64", ("batch", "positions")),
            Tensor("seqlens_k", "int32", ("batch",)),
            Tensor("total_sequence_length", "int32", ("1",)),
        ]
        return (*tokens, *sizes, *self._cache("past"))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """See `Reference`."""
        return (Tensor("logits", "float", ("batch", "positions", str(self.facts.vocabulary))), *self._cache("present"))

    @property
    def limits(self) -> Limits:
        """See `Reference`."""
        return Limits(self.facts.context, self.model.get_input_embeddings().weight.shape[0], heads=1)

    @property
    def architecture(self) -> str:
        """See `Reference`."""
        return type(self.model).__name__

    @property
    def parameters(self) -> int:
        """See `Reference`."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def compute(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        """The logits of a case (runtime/generation/replay.py), each row by itself and without a cache."""
        found = []
        with torch.inference_mode():
            for prompt, following in zip(rows_of(dict(feeds)), feeds["next_ids"].tolist(), strict=True):
                logits = self.model(input_ids=torch.tensor([prompt + following]), use_cache=False).logits[0]
                found.append(logits[len(prompt) - 1 :].float().numpy())
        return {"logits": np.stack(found)}

    def log_probabilities(self, parts: Sequence[Window]) -> list[Array]:
        """Natural log probabilities of the tokens of windows that count, windows of equal form together."""
        results: list[Array] = [np.empty(0)] * len(parts)
        forms: dict[tuple[int, int], list[int]] = {}
        for index, part in enumerate(parts):
            forms.setdefault((len(part.tokens), part.first), []).append(index)
        for (length, first), members in forms.items():
            most = max(1, LOGITS_BYTES // (4 * self.facts.vocabulary * length))
            for start in range(0, len(members), most):
                batch = members[start : start + most]
                found = self._log_probabilities(torch.tensor([parts[index].tokens for index in batch]), first)
                for index, values in zip(batch, found, strict=True):
                    results[index] = values
        return results

    def _log_probabilities(self, tokens: torch.Tensor, first: int) -> Array:
        """Of tokens [batch, length] from the index `first` on: [batch, length - first]."""
        with torch.inference_mode():
            logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits[:, first - 1 :].float()
            chosen = logits.gather(2, tokens[:, first:, None])[:, :, 0].double()
            values: Array = (chosen - logits.logsumexp(dim=2).double()).numpy()
        return values

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """What the perplexity of texts is made of (runtime/generation/perplexity.py)."""
        facts = self.facts
        return log_likelihoods_of(texts, self.backend, facts.context, facts.vocabulary, self.log_probabilities)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, **options: Any) -> list[list[int]]:
        """Exactly `max_new_tokens` token ids after each prompt, greedily; for measuring."""
        room = self.facts.context - max_new_tokens
        answers: list[list[int]] = []
        with torch.inference_mode():
            for start in range(0, len(prompts), _BATCH):
                rows = [self.backend.encode(prompt).ids[:room] or [0] for prompt in prompts[start : start + _BATCH]]
                width = max(map(len, rows))
                ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
                found = self.model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    min_new_tokens=max_new_tokens,
                    pad_token_id=0,
                )
                answers += found[:, width:].tolist()
        return answers

    def write_graph(self, path: Path) -> None:
        """See `Reference`; the model is traced."""
        trace_decoder(self.model, path)

    def _cache(self, when: str) -> list[Tensor]:
        shapes = zip(self.facts.kv_heads, self.facts.head_dims, strict=True)
        return [
            Tensor(f"{when}.{layer}.{kind}", "float", ("batch", str(heads), "max_length", str(size)))
            for layer, (heads, size) in enumerate(shapes)
            for kind in ("key", "value")
        ]


def load_decoder(source: Source, config: ExportConfig) -> LoadedDecoder:
    """Load weights and tokenizer of a decoder.

    Raises:
        UnsupportedModelError: transformers cannot load the model, or it has attention that cannot be exported.
    """
    model = load_transformer(source, "text-generation", config)
    tokenizer = load_tokenizer(source, config)
    facts = describe_decoder(model)
    folder = transformer_folder(source.folder)
    said = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ends = said.get("eos_token_id", model.config.eos_token_id)
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    templates = _chat_templates(tokenizer)
    begin = said.get("bos_token_id", model.config.bos_token_id)
    return LoadedDecoder(
        model=model,
        tokenizer=tokenizer,
        facts=facts,
        settings=TaskSettings(
            task="text-generation",
            tokenizer=TokenizerSettings("tokenizer.json", facts.context, tokenizer.pad_token_id or 0),
            embedding=None,
            labels=None,
            mask=None,
            generation=GenerationSettings(
                layers=facts.layers,
                kv_heads=facts.kv_heads,
                head_dims=facts.head_dims,
                context=facts.context,
                vocabulary=facts.vocabulary,
                eos_ids=tuple(map(int, ids)),
                bos_id=begin if isinstance(begin, int) else None,
                defaults={name: said[name] for name in _DEFAULTS if said.get(name) is not None},
                chat_template=templates.pop("default", None),
                special_tokens=_special_tokens(tokenizer),
                other_chat_templates=templates,
            ),
        ),
        notes=(*facts.notes, *_unheeded(said)),
    )


def _chat_templates(tokenizer: Any) -> dict[str, str]:
    """By name; the one of a tokenizer that has only one is the default."""
    found = tokenizer.chat_template
    if isinstance(found, str):
        return {"default": found}
    return {str(name): str(template) for name, template in (found or {}).items()}


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    """Those that transformers gives to chat templates."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}


def _unheeded(said: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence about settings of generation_config.json that change answers in transformers and not here."""
    names = [name for name, neutral in _UNHEEDED.items() if said.get(name, neutral) not in (None, neutral, [], {})]
    if not names:
        return ()
    found = f"generation_config.json sets {', '.join(names)}"
    return (f"{found}, which answers do not heed by themselves: where that matters, transformers answers otherwise",)
