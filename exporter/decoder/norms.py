"""Normalisations as one operator, where it computes what a family's own module does.

Every family has its own class, with a weight w or 1 + w. Each small module called a norm is tried on random numbers:

    rms:    x / sqrt(mean(x^2) + eps) * scale          scale: w or 1 + w
    layer:  (x - mean(x)) / sqrt(var(x) + eps) * w     without a bias, as Cohere has it

One that computes neither is traced as it is written.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.onnx.ops
from torch import Tensor, nn

from onnxpress.exporter.decoder.rotary import OPSET
from onnxpress.exporter.families import replaced

__all__ = ["norms_replaced"]

_TOLERANCE = 1e-5
_LARGEST_EPSILON = 1e-2


@contextlib.contextmanager
def norms_replaced(model: nn.Module) -> Iterator[None]:
    """While inside, norms that one operator can compute are that operator."""
    with contextlib.ExitStack() as stack:
        for part in model.modules():
            fused = _fused(part)
            if fused is not None:
                stack.enter_context(replaced(part, "forward", fused))
        yield


def _fused(part: Any) -> Callable[[Tensor], Tensor] | None:
    """The operator in place of a module's forward, if there is one."""
    weight = getattr(part, "weight", None)
    if (
        "Norm" not in type(part).__name__
        or type(part).__module__.startswith("torch.")
        or not isinstance(weight, Tensor)
        or weight.ndim != 1
        or any(True for _ in part.children())
        or len(inspect.signature(part.forward).parameters) != 1
    ):
        return None
    sample = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = part(sample)
        for epsilon in (value for value in vars(part).values() if _is_epsilon(value)):
            for shift in (0.0, 1.0):
                scale = weight + shift
                if _equal(nn.functional.rms_norm(sample, scale.shape, scale, epsilon), expected):
                    return functools.partial(_rms_norm, part, shift, epsilon)
            if _equal(nn.functional.layer_norm(sample, weight.shape, weight, None, epsilon), expected):
                return functools.partial(_layer_norm, part, epsilon)
    return None


# The weight is read from the module in each call: while torch.export traces, it is another tensor than before.
def _rms_norm(part: Any, shift: float, epsilon: float, states: Tensor) -> Tensor:
    normed: Tensor = torch.onnx.ops.symbolic(
        "RMSNormalization",
        [states, part.weight + shift if shift else part.weight],
        attrs={"axis": -1, "epsilon": epsilon},
        dtype=states.dtype,
        shape=list(states.shape),
        version=OPSET,
    )
    return normed


def _layer_norm(part: Any, epsilon: float, states: Tensor) -> Tensor:
    return nn.functional.layer_norm(states, part.weight.shape, part.weight, None, epsilon)


def _is_epsilon(value: Any) -> bool:
    return isinstance(value, float) and 0 < value <= _LARGEST_EPSILON


def _equal(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(torch.allclose(found, expected, rtol=0, atol=_TOLERANCE))
