"""The model variants are compared with, made to do its task: the same texts, tokens and threads as theirs.

Run as `python -m onnxpress.exporter.baseline OPTIONS`, it is a measuring process (see runtime/workers.py).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.source import Source
from onnxpress.runtime.batching import plan_fixed
from onnxpress.runtime.encoder import Encoder, Feeds, FloatArray
from onnxpress.runtime.tasks import TASKS, TaskModel
from onnxpress.runtime.tokenizer import Tokenizer
from onnxpress.runtime.workers import serve

if TYPE_CHECKING:
    from onnxpress.exporter.decoder.reference import LoadedDecoder
    from onnxpress.exporter.loading import LoadedModel
    from onnxpress.exporter.onnx_file.model import OnnxModel

_BATCH = 32  # the default batch size of sentence-transformers


def baseline_command(
    source: Source, task: str, config: ExportConfig, threads: int, graph: Path | None = None
) -> list[str]:
    """Command line of the measuring process for a source; `graph` as in `load_baseline`."""
    paths = {"folder": str(source.folder), "recipe": None, "onnx": source.onnx and str(source.onnx)}
    options = {
        "graph": graph and str(graph),
        "source": dataclasses.asdict(source) | paths,
        "task": task,
        "trust_remote_code": config.trust_remote_code,
        "allow_pickle": config.allow_pickle,
        "threads": threads,
    }
    return [sys.executable, "-m", "onnxpress.exporter.baseline", json.dumps(options)]


def load_baseline(
    source: Source, task: str, config: ExportConfig, threads: int | None = None, graph: Path | None = None
) -> TaskModel | LoadedDecoder:
    """The model in PyTorch, or the ONNX file that was given, as an object that does its task as a bundle does.

    Args:
        source: the model.
        task: its task.
        config: options of the export.
        threads: CPU threads; None leaves them as they are.
        graph: of an ONNX file, the graph written from it, to have pooling done by nodes as well.
    """
    if task == "text-generation":
        return _decoder(source, config, threads)
    reference: LoadedModel | OnnxModel
    if source.onnx is None:
        reference = _in_pytorch(source, task, config, threads)
    else:
        reference = _in_onnxruntime(source, task, config, threads, graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        reference.backend.save(str(path))
        tokenizer = Tokenizer(path, reference.settings.tokenizer)

    class AsItIs:
        """Batches of a fixed number of texts, one after the other, all threads on each."""

        workers = 1

        def plan(self, lengths: Sequence[int]) -> list[list[int]]:
            return plan_fixed(lengths, _BATCH)

        def run(self, feeds: Feeds, alone: bool) -> list[FloatArray]:
            outputs = reference.compute(feeds)
            return [outputs[tensor.name] for tensor in reference.outputs]

    encoder = Encoder(AsItIs(), reference.settings.tokenizer, reference.inputs, reference.outputs)
    return TASKS[task](encoder, tokenizer, reference.settings)


def _in_pytorch(source: Source, task: str, config: ExportConfig, threads: int | None) -> LoadedModel:
    import torch

    from onnxpress.exporter.loading import load_model

    if threads is not None:
        torch.set_num_threads(threads)
    return load_model(source, task, config)


def _decoder(source: Source, config: ExportConfig, threads: int | None) -> LoadedDecoder:
    import torch

    from onnxpress.exporter.decoder.reference import load_decoder

    if threads is not None:
        torch.set_num_threads(threads)
    return load_decoder(source, config)


def _in_onnxruntime(
    source: Source, task: str, config: ExportConfig, threads: int | None, graph: Path | None
) -> OnnxModel:
    """With the settings onnxruntime has by itself."""
    from onnxpress.exporter.onnx_file.model import OnnxModel

    assert source.onnx is not None
    return OnnxModel(source, task, config, graph or source.onnx, optimized=True, threads=threads)


def main() -> None:
    """Measure the model described on the command line."""
    options = json.loads(sys.argv[1])

    def load() -> Any:
        given = options["source"]
        source = Source(**{**given, "folder": Path(given["folder"]), "onnx": given["onnx"] and Path(given["onnx"])})
        config = ExportConfig(trust_remote_code=options["trust_remote_code"], allow_pickle=options["allow_pickle"])
        graph = options["graph"] and Path(options["graph"])
        return load_baseline(source, options["task"], config, options["threads"], graph)

    serve(load)


if __name__ == "__main__":
    main()
