"""An encoder in a process of its own, timed from token ids on the CPU to vectors on the CPU, whenever it is asked.

`python -m bench.gpus.encoder '{"engine": "onnxpress", "bundle": ..., "model": ..., "device": "cuda", ...}'`. Engines:
`onnxpress`, `onnxpress graphs` (a CUDA graph for each shape, fixed buffers on the device), `PyTorch` (the same
precision, `sdpa`, mean pooling). Questions: {"batch": 32, "tokens": 128, "seconds": 1}, or {"lengths": [...],
"rounds": 3} for sequences of mixed lengths, which are sorted and run 32 at a time, each batch as wide as its longest.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[Any]
Encode = Callable[[Ids, Ids], Vectors]
"""Token ids and the mask, both [batch, sequence], to vectors [batch, d]."""

MIXED_BATCH = 32
_OUTPUT = "sentence_embedding"
_LEAST_RUNS = 5


def feeds_of(names: list[str], ids: Ids, mask: Ids) -> dict[str, Ids]:
    """All inputs that a graph has."""
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids), "pooling_mask": mask}
    return {name: known[name] for name in names}


def load_onnxpress(options: dict[str, Any]) -> Encode:
    """The graph as `embed` runs it."""
    from bench.gpus.sessions import open_session

    session = open_session(options)
    names = [node.name for node in session.get_inputs()]

    def encode(ids: Ids, mask: Ids) -> Vectors:
        found: Vectors = session.run([_OUTPUT], feeds_of(names, ids, mask))[0]
        return found

    return encode


def load_graphs(options: dict[str, Any]) -> Encode:
    """A CUDA graph for each shape: the buffers stay where they are, inputs are written into them."""
    import onnxruntime

    from bench.gpus.sessions import open_session

    session = open_session({**options, "graphs": True})
    device = options["device"]
    names = [node.name for node in session.get_inputs()]
    width = next(int(node.shape[-1]) for node in session.get_outputs() if node.name == _OUTPUT)
    shapes: dict[tuple[int, ...], tuple[Any, dict[str, Any], Any, Any]] = {}

    def prepare(ids: Ids, mask: Ids) -> tuple[Any, dict[str, Any], Any, Any]:
        run = onnxruntime.RunOptions()
        run.add_run_config_entry("gpu_graph_id", str(len(shapes) + 1))
        io = session.io_binding()
        feeds = feeds_of(names, ids, mask)
        inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value.copy(), device, 0) for name, value in feeds.items()
        }
        for name, value in inputs.items():
            io.bind_ortvalue_input(name, value)
        shape = [len(ids), width]
        output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        io.bind_ortvalue_output(_OUTPUT, output)
        return io, inputs, output, run

    def encode(ids: Ids, mask: Ids) -> Vectors:
        if ids.shape not in shapes:
            shapes[ids.shape] = prepare(ids, mask)
        io, inputs, output, run = shapes[ids.shape]
        for name, value in feeds_of(names, ids, mask).items():
            inputs[name].update_inplace(value)
        session.run_with_iobinding(io, run)
        found: Vectors = output.numpy()
        return found

    return encode


def load_pytorch(options: dict[str, Any]) -> Encode:
    """transformers in the same precision, mean pooling; on the CPU, where half precision is slow, in float32."""
    import torch
    import transformers

    device = options["device"]
    dtype = torch.float16 if device == "cuda" else torch.float32
    model = transformers.AutoModel.from_pretrained(options["model"], dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()

    def encode(ids: Ids, mask: Ids) -> Vectors:
        with torch.inference_mode():
            there = torch.from_numpy(mask).to(device)
            states = model(input_ids=torch.from_numpy(ids).to(device), attention_mask=there).last_hidden_state
            weights = there.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(dim=1).float() / weights.sum(dim=1).float()
            found: Vectors = pooled.cpu().numpy()
        return found

    return encode


ENGINES = {"onnxpress": load_onnxpress, "onnxpress graphs": load_graphs, "PyTorch": load_pytorch}


def time_shape(encode: Encode, batch: int, tokens: int, vocabulary: int, seconds: float) -> dict[str, float]:
    """Median and 95th percentile of a run, in milliseconds, and texts a second."""
    random = np.random.default_rng(0)
    ids = random.integers(10, vocabulary, (batch, tokens))
    mask = np.ones_like(ids)
    for _ in range(3):
        encode(ids, mask)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _LEAST_RUNS:
        start = time.perf_counter()
        encode(ids, mask)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    worst = float(np.percentile(times, 95))
    return {"p50_ms": 1e3 * median, "p95_ms": 1e3 * worst, "texts_per_second": batch / median}


def time_mixed(encode: Encode, lengths: list[int], vocabulary: int, rounds: int) -> dict[str, float]:
    """Texts a second of sequences of these lengths, the best of some rounds after one that warms up."""
    random = np.random.default_rng(1)
    batches = []
    ordered = sorted(lengths, reverse=True)
    for start in range(0, len(ordered), MIXED_BATCH):
        part = ordered[start : start + MIXED_BATCH]
        ids = np.zeros((len(part), part[0]), np.int64)
        for row, length in enumerate(part):
            ids[row, :length] = random.integers(10, vocabulary, length)
        batches.append((ids, (ids > 0).astype(np.int64)))
    times: list[float] = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        for ids, mask in batches:
            encode(ids, mask)
        times.append(time.perf_counter() - begin)
    return {"texts_per_second": len(lengths) / min(times[1:])}


def main() -> None:
    """Answer until there are no more questions."""
    options = json.loads(sys.argv[1])
    encode = ENGINES[options["engine"]](options)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "lengths" in question:
            answer = time_mixed(encode, question["lengths"], options["vocabulary"], question["rounds"])
        else:
            shape = (question["batch"], question["tokens"])
            answer = time_shape(encode, *shape, options["vocabulary"], question["seconds"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
