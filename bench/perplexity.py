"""Perplexity of a decoder's variants against PyTorch, and of 4 bits rounded with calibration against 4 bits without.

`python -m bench.perplexity MODEL --eval FILE [--calibration FILE] [--tokens N] [--require]`: the files are plain text.
The first N tokens of the evaluation file count. Without a calibration file, its last quarter calibrates and only what
is before that counts. The variants are pressed into a temporary folder and read the text as `onnxpress export --eval`
does (runtime/generation/perplexity.py): windows of 512 tokens or the context, each beginning with the last token of the
one before, no token put before the text. The reference is the model's own class in PyTorch float32 on the same
windows, fed by transformers' tokenizer.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common

WINDOW = 512
MOST_PERCENT = {"fp32": 0.01, "int8": 0.2, "int4": 1.0}
"""By which a variant's perplexity may be above PyTorch's; of FP32 also below."""
CALIBRATED = "int4, calibrated"
_BATCH = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.perplexity", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", metavar="MODEL", type=common.existing_folder)
    parser.add_argument("--eval", required=True, metavar="FILE", type=Path, help="the text to predict")
    parser.add_argument("--calibration", metavar="FILE", type=Path, help="a text to calibrate on")
    parser.add_argument("--tokens", type=int, default=40_000, help="of the text to predict (default: 40,000)")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.perplexity: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """Every variant on the text, and the result."""
    import transformers

    facts = common.record()
    common.show_record(facts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    text, calibration = _split(_read(options.eval), options.calibration)
    text = _first_tokens(tokenizer, text, options.tokens)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) < 2:
        raise common.BadInputError(f"{options.eval} has less than two tokens before the part that calibrates")
    found = {"PyTorch": perplexity_in_pytorch(options.model, tokens)}
    found |= perplexities(options.model, text, calibration)
    print(f"\n{len(tokens):,} tokens    perplexity    against PyTorch, %")
    percent = {name: 100 * (value / found["PyTorch"] - 1) for name, value in found.items()}
    for name, value in found.items():
        print(f"  {name:<18} {value:10.4f}        {percent[name]:+.4f}")
    limits = [
        common.Limit(f"% by which {name} is above PyTorch", _deviation(name, percent.get(name)), bound)
        for name, bound in MOST_PERCENT.items()
    ]
    if CALIBRATED in found and "int4" in found:
        gain = percent["int4"] - percent[CALIBRATED]
        limits.append(common.Limit("% of perplexity that calibration saves", gain, 0.001, at_least=True))
    else:
        limits.append(common.Limit("% of perplexity that calibration saves", None, 0.001, at_least=True))
    figures = {
        "benchmark": "perplexity",
        "tokens": len(tokens),
        "perplexity": found,
        "percent": percent,
        "machine": facts,
    }
    return common.finish(figures, limits, options.require)


def perplexities(model: Path, text: str, calibration: str) -> dict[str, float]:
    """Press the model, and what each variant that passes gives."""
    import onnxpress
    from onnxpress.runtime.bundle import open_bundle

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-perplexity-") as folder:
        texts = Path(folder) / "calibration.txt"
        texts.write_text(calibration, encoding="utf-8")
        asked: dict[str, Any] = {"task": "text-generation", "measure": "none"}
        plain = onnxpress.ExportConfig(**asked)
        calibrated = onnxpress.ExportConfig(**asked, variants=("int4",), calibration=(texts,))
        for name, config in (("plain", plain), ("calibrated", calibrated)):
            try:
                bundle = onnxpress.export(model, Path(folder) / name, config).folder
            except onnxpress.OnnxpressError as error:
                raise common.BadInputError(str(error)) from error
            for variant in open_bundle(bundle).manifest.variants:
                generator = onnxpress.load(bundle, variant=variant.name, task="text-generation")
                found[CALIBRATED if name == "calibrated" else variant.name] = generator.perplexity([text])
                generator.close()
    return found


def perplexity_in_pytorch(folder: Path, tokens: Sequence[int]) -> float:
    """exp of the mean negative log probability of all tokens but the first."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    window = min(WINDOW, model.config.max_position_embeddings)
    parts = [tokens[start : start + window] for start in range(0, len(tokens) - 1, window - 1)]
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(parts), _BATCH):
            batch = [torch.tensor(part) for part in parts[start : start + _BATCH]]
            padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # on the right, where no token sees it
            logits = model(input_ids=padded[:, :-1], use_cache=False).logits.double()
            chosen = logits.log_softmax(dim=-1).gather(2, padded[:, 1:, None])[:, :, 0]
            for row, part in zip(chosen, batch, strict=True):
                total += float(row[: len(part) - 1].sum())
                count += len(part) - 1
    return math.exp(-total / count)


def _read(path: Path) -> str:
    from onnxpress.runtime.data.lines import read_text
    from onnxpress.runtime.errors import InvalidInputError

    try:
        return read_text(path, "text")
    except InvalidInputError as error:
        raise common.BadInputError(str(error)) from error


def _split(text: str, calibration: Path | None) -> tuple[str, str]:
    """The text to predict and the text to calibrate on."""
    if calibration is not None:
        return text, _read(calibration)
    start = len(text) * 3 // 4
    return text[:start], text[start:]


def _first_tokens(tokenizer: Any, text: str, count: int) -> str:
    """The beginning of a text, of so many tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= count else text[: offsets[count][0]]


def _deviation(name: str, percent: float | None) -> float | None:
    return abs(percent) if percent is not None and name == "fp32" else percent


if __name__ == "__main__":
    sys.exit(main())
