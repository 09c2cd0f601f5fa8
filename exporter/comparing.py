"""A model in PyTorch, or an ONNX file from elsewhere, as a side of a comparison (runtime/comparing)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from onnxpress.exporter.baseline import baseline_command, load_baseline
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.labels import label_settings
from onnxpress.exporter.onnx_file.folder import weight_files
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.source import Source, resolve_source, transformer_folder
from onnxpress.exporter.tasks import resolve_task
from onnxpress.runtime.comparing import Side
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tokenizer import Tokenizer


def checkpoint_side(model: str, config: ExportConfig) -> Side:
    """The side of a model that is not pressed yet.

    Args:
        model: a local folder, an ONNX file, a recipe or a hub id.
        config: options of an export; its task counts, and what may be read and run.

    Raises:
        InvalidInputError: there is no such model.
        UnsupportedModelError: its folder cannot be used.
    """
    source = resolve_source(model, config)
    if source.recipe is not None:
        config = source.recipe.apply(config)
    task = resolve_task(config.task, source)

    def load(threads: int) -> Any:
        with quiet():
            return load_baseline(source, task, config, threads)

    def describe() -> tuple[Tokenizer, TaskSettings]:
        loaded = load(1)
        if isinstance(getattr(loaded, "tokenizer", None), Tokenizer):
            return loaded.tokenizer, loaded.settings
        with tempfile.TemporaryDirectory() as folder:  # a decoder
            path = Path(folder) / "tokenizer.json"
            loaded.backend.save(str(path))
            return Tokenizer(path, loaded.settings.tokenizer), loaded.settings

    return Side(
        name=f"{source.name} ({'PyTorch' if source.onnx is None else 'ONNX file'})",
        kind="checkpoint",
        location=model,
        variant=None,
        task=task,
        labels=label_settings(task, source),
        size_bytes=_weights_bytes(source),
        load=load,
        command=lambda threads: baseline_command(source, task, config, threads),
        describe=describe,
    )


def _weights_bytes(source: Source) -> int:
    """The files that hold the model's weights."""
    if source.onnx is not None:
        return sum(path.stat().st_size for path in (source.onnx, *weight_files(source.onnx).values()))
    folder = transformer_folder(source.folder)
    found = list(folder.glob("*.safetensors")) or [*folder.glob("*.bin"), *folder.glob("*.pt")]
    return sum(path.stat().st_size for path in found)
