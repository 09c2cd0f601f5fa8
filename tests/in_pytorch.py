"""The classes that serve a bundle, over a model in PyTorch: what may then differ is their own work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from onnxpress.exporter.baseline import load_baseline
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.source import resolve_source
from tests.models import bert_config, make_tokenizer


def save_bert(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """Save a random `BertFor...` with its tokenizer.

    Args:
        folder: where to.
        kind: what follows `BertFor` in the name of the class.
        seed: of the weights.
        changes: to its configuration, such as labels.
    """
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, f"BertFor{kind}")(bert_config(**changes))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def serve_in_pytorch(folder: Path, task: str) -> Any:
    """The class of a task over the model of a folder."""
    config = ExportConfig()
    with quiet():
        return load_baseline(resolve_source(str(folder), config), task, config)


def pipeline(task: str, folder: Path, **options: Any) -> Any:
    """transformers' own."""
    with quiet():
        return transformers.pipeline(task, model=str(folder), device="cpu", **options)
