"""How many floating-point operations a model's matrix products take for each token, from its ONNX graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

_PRODUCTS = {"MatMul", "Gemm", "FusedMatMul"}


def matmul_flops_per_token(model: Any) -> int:
    """Multiplications and additions for each token in products of activations with two-dimensional weights.

    Products of two activations (attention scores and their sums) are left out. They grow with the text's length; for
    short texts they are below one percent, and without them the figure is a lower bound on the useful work.

    Args:
        model: an `onnx.ModelProto`; its weights need not be loaded.
    """
    weights: dict[str, int] = {
        tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) == 2
    }
    products = (node for node in model.graph.node if node.op_type in _PRODUCTS)
    return 2 * sum(weights.get(name, 0) for node in products for name in node.input[:2])


def flops_per_token_of(path: Path) -> int:
    """The same for a file."""
    import onnx

    return matmul_flops_per_token(onnx.load(path, load_external_data=False))
