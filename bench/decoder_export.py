"""How long a decoder takes from the loaded model to the saved FP32 graph, and how much memory.

`python -m bench.decoder_export` makes a random model of 135 million parameters in Llama's shape (hidden size 576, 30
layers, 9 heads that share 3 keys, vocabulary 49152, tied embeddings), traces it in this process and saves it. The
memory is the highest resident size above that after the imports, loaded model included, in units of the weights. The
graph is not verified here, and nothing is run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.generating.models import SHAPE

MOST_SECONDS = 30.0
MOST_MEMORY = 2.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.decoder_export", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="of the model")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    facts = common.record()
    common.show_record(facts)
    figures = measure(options.layers)
    print(f"\n{figures['parameters'] / 1e6:.1f} M parameters, weights {figures['weights_mb']:.0f} MB")
    print(f"seconds         {figures['seconds']:7.1f}")
    print(f"memory, MB      {figures['peak_mb']:7.0f}   {figures['peak_in_weights']:.2f} x the weights")
    print(f"files, MB       {figures['files_mb']:7.0f}")
    print("operators       " + ", ".join(f"{count} {name}" for name, count in figures["operators"].items()))
    limits = [
        common.Limit("export, seconds", figures["seconds"], MOST_SECONDS),
        common.Limit("memory, in weights", figures["peak_in_weights"], MOST_MEMORY),
    ]
    return common.finish({"benchmark": "decoder_export", **figures, "machine": facts}, limits, options.require)


def measure(layers: int) -> dict[str, Any]:
    """Seconds, memory and size of one export."""
    import onnx
    import torch
    import transformers

    from onnxpress.exporter.decoder import trace_decoder
    from onnxpress.exporter.quiet import quiet

    before = common.memory_bytes()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": layers})
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = 4 * parameters
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.perf_counter()
        with quiet():
            trace_decoder(model, path)
        seconds = time.perf_counter() - start
        files = sum(file.stat().st_size for file in Path(folder).iterdir())
        graph = onnx.load(str(path), load_external_data=False).graph
    peak = common.memory_bytes(peak=True) - before
    return {
        "parameters": parameters,
        "layers": layers,
        "weights_mb": weights / 1e6,
        "seconds": seconds,
        "peak_mb": peak / 1e6,
        "peak_in_weights": peak / weights,
        "files_mb": files / 1e6,
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
    }


if __name__ == "__main__":
    sys.exit(main())
