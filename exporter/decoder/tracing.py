"""A decoder of transformers to one ONNX graph for prefill and decoding, attention fused while it is traced.

Inputs: `input_ids` and `position_ids` int64 [batch, sequence]; `logit_index` int64 [batch, positions], the indices in
the sequence of the tokens whose logits are wanted; `seqlens_k` int32 [batch], the tokens of the row once these are in,
minus 1; `total_sequence_length` int32 [1], the largest of those lengths; `past.{i}.key` and `past.{i}.value` float32
[batch, kv_heads, max_length, head_dim]. Outputs: `logits` float32 [batch, positions, vocabulary]; `present.{i}.key` and
`present.{i}.value`, which share their buffers with the past.

Does not compare the graph with the model; the gate does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.onnx.ops
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from onnxpress.exporter.decoder.attention import CausalMask, attention_replaced
from onnxpress.exporter.decoder.context import context_of, positions_as_trained
from onnxpress.exporter.decoder.conversion import convert
from onnxpress.exporter.decoder.experts import experts_replaced
from onnxpress.exporter.decoder.families import traceable
from onnxpress.exporter.decoder.forward import Layer, Observation, call, in_progress
from onnxpress.exporter.decoder.fusions import fuse
from onnxpress.exporter.decoder.last_tokens import take_early
from onnxpress.exporter.decoder.norms import norms_replaced
from onnxpress.exporter.decoder.refusals import USUAL, refuse_decoder
from onnxpress.exporter.decoder.rotary import rotary_replaced
from onnxpress.exporter.decoder.simplifying import clean, simplify
from onnxpress.exporter.families import replaced, unchanged
from onnxpress.exporter.graph_names import graph_input
from onnxpress.quantize.graphs import save_program
from onnxpress.runtime.errors import UnsupportedModelError, first_line

__all__ = ["DecoderFacts", "describe_decoder", "trace_decoder"]


_OBSERVED = 5
"""Tokens of the real pass."""
_BIAS = 10
"""Index of GroupQueryAttention's attention_bias."""


@dataclasses.dataclass(frozen=True)
class DecoderFacts:
    """What a caller of the graph needs to know."""

    layers: int
    kv_heads: tuple[int, ...]
    """Of each layer's cache."""
    head_dims: tuple[int, ...]
    """Of each layer's cache; at least the model's own, and a multiple of 8."""
    context: int
    """Tokens at most, prompt and answer together."""
    vocabulary: int
    """Logits of a token."""
    notes: tuple[str, ...] = ()
    """Sentences about what differs from the model's own description, such as a shorter context."""


def describe_decoder(model: Any) -> DecoderFacts:
    """What a decoder's graph will be like, without tracing it.

    Args:
        model: as for `trace_decoder`.

    Raises:
        UnsupportedModelError: as `trace_decoder`.
    """
    with _replaced(model):
        return _observe(model)[0]


def trace_decoder(model: Any, path: Path) -> DecoderFacts:
    """Trace a decoder and write `path` with its weights beside it, in `<name>.data`.

    Args:
        model: a transformers model with a language model head, float32, in evaluation mode; left as it was.

    Raises:
        UnsupportedModelError: its attention, cache or positions are of a kind that the graph cannot hold.
    """
    with _replaced(model):
        facts, layers = _observe(model)
        embedding = model.get_input_embeddings().weight
        graph = convert(model, layers, embedding.shape[0], _cache_argument(model))
    simplify(graph)
    fuse(graph, facts.context)
    take_early(graph)
    clean(graph)
    _check_positions(model, graph)
    save_program(graph, path)
    return facts


@contextlib.contextmanager
def _replaced(model: Any) -> Iterator[None]:
    """While inside, a model calls the code of this package for attention, rotary embedding, norms and experts.

    Raises:
        UnsupportedModelError: whatever went wrong inside, with the model's name.
    """
    refuse_decoder(model.config.model_type, type(model).__name__)
    try:
        with contextlib.ExitStack() as stack:
            for replacement in (
                unchanged, attention_replaced, experts_replaced, rotary_replaced, norms_replaced, positions_as_trained,
                _products_replaced, _wanted_logits, traceable,
            ):  # fmt: skip
                stack.enter_context(replacement(model))
            yield
    except UnsupportedModelError as error:
        raise _cannot_trace(model, str(error)) from error
    # torch.export, torch.onnx and transformers raise many types; each means the same to the user.
    except Exception as error:
        raise _cannot_trace(model, _reason(error)) from error


def _products_replaced(_: Any) -> contextlib.AbstractContextManager[None]:
    """While inside, GPT-2's kind of linear layer is a product and a sum, without the change of shape around them."""
    return replaced(Conv1D, "forward", _multiply)


def _multiply(self: Any, states: Tensor) -> Tensor:
    """Conv1D.forward."""
    product: Tensor = states @ self.weight + self.bias
    return product


@contextlib.contextmanager
def _wanted_logits(model: Any) -> Iterator[None]:
    """While inside, the language model head is given the hidden states at `logit_index` alone."""

    def gather(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = given
        forward = in_progress()
        if isinstance(forward, Observation):
            return (hidden[:, -1:], *rest)
        index = forward.shared["logit_index"]
        wanted = torch.onnx.ops.symbolic(
            "GatherND",
            [hidden, index[:, :, None]],
            attrs={"batch_dims": 1},
            dtype=hidden.dtype,
            shape=[*index.shape, hidden.shape[-1]],
            version=13,
        )
        return (wanted, *rest)

    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError("it has no language model head")
    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def _observe(model: Any) -> tuple[DecoderFacts, list[Layer]]:
    """What the layers are like, from passes over two rows of a few tokens."""
    context, notes = context_of(model.config.get_text_config(decoder=True))
    length = min(_OBSERVED, context - 1)
    first = torch.arange(length).repeat(2, 1)
    later = first + torch.tensor([[0], [min(3, context - length)]])
    layers, logits = _observed(model, later, length)
    # Attention computes nothing here, so that only positions that are looked up in a table can differ.
    if not torch.equal(_observed(model, first, length)[1], _observed(model, None, length)[1]):
        raise UnsupportedModelError("without position_ids it counts from another number than 0")
    facts = DecoderFacts(
        layers=len(layers),
        kv_heads=tuple(layer.kv_heads for layer in layers),
        head_dims=tuple(layer.head_dim for layer in layers),
        context=context,
        vocabulary=logits.shape[-1],
        notes=notes,
    )
    return facts, layers


def _observed(model: Any, positions: Tensor | None, length: int) -> tuple[list[Layer], Tensor]:
    """One pass over tokens [2, length] at given positions, or at those that the model gives them by itself."""
    observation = Observation()
    given = {} if positions is None else {"position_ids": positions}
    with torch.no_grad(), call(observation):
        logits = model(
            input_ids=torch.arange(length).repeat(2, 1),
            use_cache=True,
            **given,
            **{_cache_argument(model): observation.cache},
        ).logits
    if sorted(observation.layers) != list(range(len(observation.cache.updates))) or not observation.layers:
        raise UnsupportedModelError(
            "its attention does not go through transformers' AttentionInterface in every layer that caches"
        )
    return [observation.layers[index] for index in range(len(observation.layers))], logits


def _cache_argument(model: Any) -> str:
    """What a model's forward calls its cache, which differs between versions of transformers."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _check_positions(model: Any, graph: Any) -> None:
    """Refuse a graph that does not know where its tokens are."""
    positions = graph_input(graph, "position_ids")
    biased = any(len(node.inputs) > _BIAS and node.inputs[_BIAS] is not None for node in graph.graph)
    if not positions.uses() and not biased:
        raise _cannot_trace(model, "it takes no account of position_ids")


def _cannot_trace(model: Any, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} ({model.config.model_type}) cannot be exported for text-generation: {reason}"
    )


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:  # torch.onnx wraps what went wrong in what to do about it
        error = error.__cause__
    if CausalMask.__name__ not in str(error):
        return first_line(error)
    return (
        "its attention is not handled, for it is written out instead of going through transformers' "
        f"AttentionInterface; {USUAL}"
    )
