"""Makes the model of bench/generate.py in the form each engine takes: random weights in Llama's shape.

The onnxruntime-genai form comes from its own builder, the GGUF form from the `gguf` package and llama.cpp's own
quantization; both run in the interpreter that has them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from bench import common

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""135 million parameters."""
GGUF_TYPES = {"f32": 0, "q8_0": 7, "q4_0": 2}
"""llama.cpp's numbers for files of these types (`llama_ftype`)."""


def make_model(folder: Path) -> None:
    """A transformers folder: random weights, and a tokenizer with a word for each token."""
    if (folder / "tokenizer.json").is_file():
        return
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    # Twice the usual spread: answers then differ from prompt to prompt, and few logits are nearly equal.
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, initializer_range=0.04))
    model.save_pretrained(folder)
    words = {f"w{index}": index for index in range(SHAPE["vocab_size"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0").save_pretrained(folder)


def make_bundle(model: Path, folder: Path) -> None:
    """Press it, verified and not measured."""
    if (folder / "onnxpress.json").is_file():
        return
    from onnxpress.exporter import ExportConfig, export
    from onnxpress.exporter.config import Thresholds

    # The noise of rounding is not damped by random weights as it is by trained ones, and adds up over 30 layers.
    config = ExportConfig(variants=("fp32", "int8", "int4"), measure="none", thresholds=Thresholds(int4_rms=1.0))
    export(str(model), folder, config)


def make_genai(python: str, model: Path, folder: Path, precision: str) -> None:
    """`precision`: fp32 or int4, with the builder's defaults."""
    if (folder / "genai_config.json").is_file():
        return
    builder = ["-m", "onnxruntime_genai.models.builder", "-m", str(model), "-o", str(folder), "-p", precision]
    _run([python, *builder, "-e", "cpu", "-c", str(folder.with_name("genai-cache"))], common.offline_environment())


def make_gguf(python: str, model: Path, file: Path) -> None:
    """`file`: named after one of `GGUF_TYPES`; the f32 one must be there before the others."""
    if not file.is_file():
        _run([python, "-m", "bench.generating.gguf_files", str(model), str(file)], common.offline_environment())


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=common.ROOT, env={**environment, "TQDM_DISABLE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no output"]
        raise common.BadInputError(f"{Path(command[0]).name} {' '.join(command[1:3])} failed: {said[-1][:300]}")
    return done.stdout
