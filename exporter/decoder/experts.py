"""Mixtures of experts: each group of experts becomes one com.microsoft::MoE.

transformers gives every family's experts the tokens x, the chosen experts e_1 .. e_k of each and their weights w_i; the
result is sum_i w_i f_{e_i}(x) with f(x) = down(act(gate_up x)). MoE takes logits in place of choices. With log w_i
for the chosen and a very small number for the others it chooses the same, and weighs them by w_i / sum(w); the sum is
multiplied back. What the family calls act must be SwiGLU, which is tried on random numbers:

    g * sigmoid(alpha g) * (u + beta)      g clamped from above, u from both sides, where there is a limit
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.onnx.ops
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from onnxpress.exporter.decoder.attention import NAME
from onnxpress.exporter.decoder.forward import Observation, in_progress
from onnxpress.runtime.errors import UnsupportedModelError

__all__ = ["experts_replaced"]

_NEVER = -1e30
"""The logit of an expert that is not chosen."""


@contextlib.contextmanager
def experts_replaced(model: Any) -> Iterator[None]:
    """While inside, experts that transformers calls through its registry are those of this module."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, _Experts())
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "is_concatenated")}
    before = {key: config._experts_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._experts_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]


@dataclasses.dataclass(frozen=True)
class _SwiGLU:
    interleaved: bool
    """Whether gates and the others take turns, or all gates come first."""
    alpha: float
    beta: float
    limit: float | None

    def __call__(self, gate_up: Tensor) -> Tensor:
        gate, up = (gate_up[..., ::2], gate_up[..., 1::2]) if self.interleaved else gate_up.chunk(2, dim=-1)
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (up + self.beta)


class _Experts:
    """What transformers calls. Activations are found in the observed pass."""

    def __init__(self) -> None:
        self._activations: dict[int, _SwiGLU] = {}

    def __call__(self, module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden: [tokens, h]; index and weights: [tokens, k]."""
        if isinstance(in_progress(), Observation):
            self._activations[id(module)] = _activation(module)
            return torch.zeros_like(hidden)
        return _emit(module, self._activations[id(module)], hidden, top_k_index, top_k_weights)


def _emit(module: Any, activation: _SwiGLU, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    gate_up, down = module.gate_up_proj, module.down_proj
    gate_up_bias, down_bias = (module.gate_up_proj_bias, module.down_proj_bias) if module.has_bias else (None, None)
    if module.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    if not activation.interleaved:
        gate_up = _interleave(gate_up)
        gate_up_bias = None if gate_up_bias is None else _interleave(gate_up_bias)
    logits = torch.full((hidden.shape[0], gate_up.shape[0]), _NEVER, dtype=hidden.dtype)
    logits = logits.scatter(1, top_k_index, top_k_weights.to(hidden.dtype).log())
    limit = {} if activation.limit is None else {"swiglu_limit": activation.limit}
    inputs = [hidden, logits, gate_up, gate_up_bias, down, down_bias]
    mixed: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::MoE",
        inputs if module.has_bias else inputs[:-1],
        attrs={
            "k": top_k_index.shape[-1],
            "activation_type": "swiglu",
            "swiglu_fusion": 1,  # interleaved, the form that the CPU has
            "activation_alpha": activation.alpha,
            "activation_beta": activation.beta,
            **limit,
        },
        dtype=hidden.dtype,
        shape=list(hidden.shape),
        version=1,
    )
    # onnxruntime 1.28 writes the result over its input while it still reads it, unless something reads the input later.
    mixed = torch.where(torch.zeros((), dtype=torch.bool), hidden, mixed)
    return mixed * top_k_weights.to(hidden.dtype).sum(dim=-1, keepdim=True)


def _interleave(weights: Tensor) -> Tensor:
    """[experts, 2 i, ...], gates first, to gates and others in turn."""
    experts, rows, *rest = weights.shape
    return weights.reshape(experts, 2, rows // 2, *rest).transpose(1, 2).reshape(experts, rows, *rest)


def _activation(module: Any) -> _SwiGLU:
    """The SwiGLU that a group of experts computes.

    Raises:
        UnsupportedModelError: it computes something else.
    """
    if module.has_gate and not module.has_post_expert_norm and not getattr(module, "_is_expert_parallel", False):
        alphas, limits = _settings(module, "alpha", 1.0), _settings(module, "limit", None)
        # Large numbers, so that a limit shows.
        sample = 8 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
        expected = module._apply_gate(sample)
        for form in itertools.product((False, True), alphas, (0.0, 1.0), limits):
            if torch.allclose(_SwiGLU(*form)(sample), expected, rtol=1e-5, atol=1e-5):
                return _SwiGLU(*form)
    raise UnsupportedModelError(
        f"its experts ({type(module).__name__}) compute something else than SwiGLU, which is what onnxruntime's "
        "mixture of experts has on the CPU"
    )


def _settings(module: Any, name: str, usual: float | None) -> list[Any]:
    given = [value for key, value in vars(module).items() if name in key and isinstance(value, float)]
    return [usual, *given]
