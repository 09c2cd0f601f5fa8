"""PyTorch eager as the row every variant is compared with: the same model, the same texts, the same threads.

Run as `python -m onnxpress.exporter.baseline OPTIONS`, it is a measuring process (see runtime/workers.py).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.source import Source
from onnxpress.runtime.workers import serve

_BATCH = 32  # the default batch size of sentence-transformers


def baseline_command(source: Source, task: str, config: ExportConfig, threads: int) -> list[str]:
    """Command line of the measuring process for a source."""
    options = {
        "source": dataclasses.asdict(source) | {"folder": str(source.folder), "recipe": None},
        "task": task,
        "trust_remote_code": config.trust_remote_code,
        "allow_pickle": config.allow_pickle,
        "threads": threads,
    }
    return [sys.executable, "-m", "onnxpress.exporter.baseline", json.dumps(options)]


def make_embed(source: Source, task: str, config: ExportConfig) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """Load the model in PyTorch and return its `embed`: texts to float32 [n, d], sorted by length, batches of 32."""
    import torch

    from onnxpress.exporter.loading import load_model, reference_outputs
    from onnxpress.runtime.tokenizer import prompt_length

    model = load_model(source, task, config)
    settings = model.tokenizer_settings
    prompts = model.embedding
    prefix = prompts.prompts.get(prompts.default_prompt_name or "", "")
    backend = model.tokenizer.backend_tokenizer
    skipped = prompt_length(backend, prefix) if prefix and not prompts.include_prompt else 0

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        result = np.empty((len(texts), prompts.dimension), np.float32)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            prefixed = [prefix + texts[index] for index in batch]
            tokens = model.tokenizer(
                prefixed, padding=True, truncation=True, max_length=settings.max_length, return_tensors="np"
            )
            feeds = {name: tokens[name].astype(np.int64) for name in model.input_names if name in tokens}
            if "token_type_ids" in model.input_names:
                feeds.setdefault("token_type_ids", np.zeros_like(feeds["input_ids"]))
            if "pooling_mask" in model.input_names:
                feeds["pooling_mask"] = feeds["attention_mask"].copy()
                feeds["pooling_mask"][:, :skipped] = 0
            result[batch] = reference_outputs(model, feeds)
        return result

    torch.set_grad_enabled(False)
    return embed


def main() -> None:
    """Measure the model described on the command line."""
    options = json.loads(sys.argv[1])

    def load() -> Callable[[list[str]], npt.NDArray[np.float32]]:
        import torch

        torch.set_num_threads(options["threads"])
        source = Source(**{**options["source"], "folder": Path(options["source"]["folder"])})
        config = ExportConfig(trust_remote_code=options["trust_remote_code"], allow_pickle=options["allow_pickle"])
        return make_embed(source, options["task"], config)

    serve(load)


if __name__ == "__main__":
    main()
