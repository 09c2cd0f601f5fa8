"""Which PyTorch module each tensor of a graph came from, also where passes have put nodes together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import onnx

from onnxpress.quantize.graphs import module_of

WRAPPER = "transformer."
"""Where exporter/heads.py keeps an encoder."""
_WEIGHT = re.compile(r"(.+)\.(?:weight|bias)(?:\+.*)?")  # and those that were put together
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"  # what torch writes where there is none


def modules_of(nodes: Sequence[onnx.NodeProto], strip: str = "") -> dict[str, str]:
    """The PyTorch module of each tensor. A node that a fusion has made does not say its own: it gets that of its
    weights, by their names, else what the modules of all that read its results have in common.

    Args:
        nodes: of a graph, in order.
        strip: what paths begin with and should not, such as `WRAPPER`.
    """
    found: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for node in reversed(nodes):
        module = (
            module_of(node) or _module_of_weights(node) or _common([r for o in node.output for r in readers.get(o, ())])
        )
        if module in (None, "", _NO_MODULE):
            continue
        found |= dict.fromkeys(node.output, str(module))
        for name in node.input:
            readers.setdefault(name, []).append(str(module))
    return {name: module.removeprefix(strip) for name, module in found.items()}


def _module_of_weights(node: onnx.NodeProto) -> str | None:
    return next((match[1] for name in node.input if (match := _WEIGHT.fullmatch(name))), None)


def _common(modules: Sequence[str]) -> str:
    """The longest path that all begin with."""
    paths = [module.split(".") for module in modules]
    return ".".join(
        parts[0] for parts in itertools.takewhile(lambda row: len(set(row)) == 1, zip(*paths, strict=False))
    )
