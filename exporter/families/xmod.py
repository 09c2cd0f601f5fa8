"""X-MOD: one adapter per language, picked by masks that ONNX cannot write back through.

A graph has no input for the language, so that every text is in the model's default language (as it is when PyTorch is
called without `lang_ids`), and its adapter can be called on all of them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from transformers.models.xmod.modeling_xmod import XmodOutput

from onnxpress.exporter.families import replaced
from onnxpress.runtime.errors import UnsupportedModelError


def traceable(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """See the module.

    Raises:
        UnsupportedModelError: the model has no default language.
    """
    config: Any = module.config
    language = config.default_language
    if language is None:
        raise UnsupportedModelError(
            "this X-MOD model has no default language, and a graph has one; set default_language in config.json to one "
            f"of {', '.join(config.languages)}"
        )

    def adapt(output: Any, lang_ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """XmodOutput.lang_adapter for one language. `hidden`: [batch, sequence, h]."""
        residual = hidden
        if output.adapter_layer_norm is not None:
            hidden = output.adapter_layer_norm(hidden)
        elif output.adapter_reuse_layer_norm:
            hidden = output.LayerNorm(hidden)
        if output.ln_before_adapter:
            residual = hidden
        adapted: torch.Tensor = output.adapter_modules[language](hidden)
        return adapted + residual

    return replaced(XmodOutput, "lang_adapter", adapt)
