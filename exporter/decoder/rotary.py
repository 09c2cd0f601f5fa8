"""Rotary embedding as one operator, where it computes what a family's own function does.

Families write `apply_rotary_pos_emb(q, k, cos, sin)` in several ways: over halves or over pairs, of all or of the first
dimensions of a head, with cos and sin once or twice over. In the observed pass the family's function is called on
random numbers and compared with each form that RotaryEmbedding has; the form that fits is emitted while tracing. Where
none fits, the family's own function is traced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.onnx.ops
from torch import Tensor

from onnxpress.exporter.decoder.forward import Observation, in_progress
from onnxpress.exporter.families import replaced

__all__ = ["OPSET", "rotary_replaced"]

OPSET = 23
"""The first operator set with RotaryEmbedding and RMSNormalization."""
_NAME = "apply_rotary_pos_emb"
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class _Form:
    """One way to read cos and sin."""

    interleaved: bool
    """Whether pairs lie side by side, or half a head apart."""
    part: Literal["half", "every second", "all"]
    """Which of the given cosines belong to the pairs."""

    def angles(self, given: Tensor) -> Tensor:
        """[batch, sequence, pairs] of cos or sin as given."""
        if self.part == "half":
            return given[..., : given.shape[-1] // 2]
        return given if self.part == "all" else given[..., ::2]


_PARTS: tuple[Literal["half", "every second", "all"], ...] = ("half", "all", "every second")
_FORMS = [_Form(interleaved, part) for interleaved in (False, True) for part in _PARTS]


@contextlib.contextmanager
def rotary_replaced(model: Any) -> Iterator[None]:
    """While inside, the functions of the Python modules a model is made of are replaced."""
    homes = {type(part).__module__: sys.modules[type(part).__module__] for part in model.modules()}
    with contextlib.ExitStack() as stack:
        for home in homes.values():
            function = getattr(home, _NAME, None)
            if function is not None and list(inspect.signature(function).parameters)[:4] == ["q", "k", "cos", "sin"]:
                stack.enter_context(replaced(home, _NAME, _Rotary(function)))
        yield


class _Rotary:
    """Stands for one family's function."""

    def __init__(self, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        self._forms: dict[tuple[int, ...], _Form | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        q, k, cos, sin, *_ = bound.arguments.values()
        heads_axis = bound.arguments.get("unsqueeze_dim", 1)
        key = (q.shape[-1], k.shape[-1], cos.shape[-1], heads_axis)
        if isinstance(in_progress(), Observation):
            form = self._find(bound, q, k, cos, sin, heads_axis)
            self._forms[key] = form if self._forms.get(key, form) == form else None
        form = self._forms.get(key)
        if form is None or isinstance(in_progress(), Observation):
            return self._function(*args, **kwargs)
        cos, sin = form.angles(cos), form.angles(sin)
        return tuple(_emit(states, cos, sin, form, heads_axis) for states in (q, k))

    def _find(
        self, bound: inspect.BoundArguments, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, heads_axis: int
    ) -> _Form | None:
        if q.ndim != 4 or cos.ndim != 3 or heads_axis not in (1, 2):
            return None
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(states.shape, generator=generator) for states in (q, k)]
        expected = self._function(*inputs, *list(bound.arguments.values())[2:])
        for form in _FORMS:
            c, s = form.angles(cos), form.angles(sin)
            if 2 * c.shape[-1] > min(q.shape[-1], k.shape[-1]):
                continue
            found = [_compute(states, c, s, form.interleaved, heads_axis) for states in inputs]
            if all(torch.allclose(a, b, rtol=0, atol=_TOLERANCE) for a, b in zip(found, expected, strict=True)):
                return form
        return None


def _compute(states: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, heads_axis: int) -> Tensor:
    """RotaryEmbedding of ONNX. `states`: [batch, heads, sequence, d], or [batch, sequence, heads, d] for axis 2."""
    width = 2 * cos.shape[-1]
    turned, kept = states[..., :width], states[..., width:]
    cos, sin = cos.unsqueeze(heads_axis), sin.unsqueeze(heads_axis)
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    pair = (cos * first - sin * second, sin * first + cos * second)
    return torch.cat([torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1), kept], -1)


def _emit(states: Tensor, cos: Tensor, sin: Tensor, form: _Form, heads_axis: int) -> Tensor:
    by_token = states.transpose(1, 2) if heads_axis == 1 else states
    batch, length, heads, width = by_token.shape
    flat = by_token.reshape(batch, length, heads * width)
    options = {"num_heads": heads, "interleaved": int(form.interleaved)}
    if 2 * cos.shape[-1] < width:
        options["rotary_embedding_dim"] = 2 * cos.shape[-1]
    turned = torch.onnx.ops.symbolic(
        "RotaryEmbedding", [flat, cos, sin], attrs=options, dtype=flat.dtype, shape=list(flat.shape), version=OPSET
    )
    shaped: Tensor = turned.reshape(batch, length, heads, width)
    return shaped.transpose(1, 2) if heads_axis == 1 else shaped
