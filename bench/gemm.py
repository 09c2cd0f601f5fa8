"""The most float32 matrix-product work this processor does in onnxruntime: the ceiling for an FP32 model.

One session with one thread per core, all at the same time, over products of the sizes that occur in encoders; the best
size counts. Weights are constants, so onnxruntime packs them once as it does in a model, and outputs are written to
memory that is there already.

`python -m bench.gemm '{"threads": 2}'` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

_ROWS = (128, 256, 512, 1024, 2048)
_WEIGHTS = ((384, 384), (384, 1152), (384, 1536), (1536, 384), (1024, 1024), (2048, 2048))
_SECONDS = 0.1
_REPEATS = 3


def measure_peak(threads: int) -> dict[str, Any]:
    """The best size and its rate, all cores together."""
    rates = {
        (rows, inner, columns): _rate(rows, inner, columns, threads) for inner, columns in _WEIGHTS for rows in _ROWS
    }
    best = max(rates, key=lambda size: rates[size])
    return {"gemm_gflops_per_second": rates[best] / 1e9, "rows": best[0], "inner": best[1], "columns": best[2]}


def _rate(rows: int, inner: int, columns: int, threads: int) -> float:
    """Floating-point operations a second of `threads` one-thread sessions side by side."""
    products = [_product(rows, inner, columns) for _ in range(threads)]
    flops = 2 * rows * inner * columns
    once = _seconds(products, 3) / 3
    count = max(1, round(_SECONDS / once))
    return threads * count * flops / min(_seconds(products, count) for _ in range(_REPEATS))


def _seconds(products: Sequence[Callable[[], None]], count: int) -> float:
    """Time until the last of several threads has run its product `count` times."""
    start_line = threading.Barrier(len(products) + 1)

    def work(product: Callable[[], None]) -> None:
        start_line.wait()
        for _ in range(count):
            product()

    workers = [threading.Thread(target=work, args=(product,)) for product in products]
    for worker in workers:
        worker.start()
    start_line.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def _product(rows: int, inner: int, columns: int) -> Callable[[], None]:
    import numpy as np
    import onnxruntime

    random = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = _model(random.standard_normal((inner, columns), dtype=np.float32))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    left = onnxruntime.OrtValue.ortvalue_from_numpy(random.standard_normal((rows, inner), dtype=np.float32))
    binding.bind_ortvalue_input("left", left)
    output = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((rows, columns), np.float32))
    binding.bind_ortvalue_output("product", output)
    return lambda: session.run_with_iobinding(binding)


def _model(weight: Any) -> bytes:
    """left [rows, inner] x weight [inner, columns] as an ONNX file."""
    import onnx
    from onnx import helper, numpy_helper

    inner, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "weight"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", onnx.TensorProto.FLOAT, ["rows", inner])],
        [helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, ["rows", columns])],
        [numpy_helper.from_array(weight, "weight")],
    )
    # Versions every supported onnxruntime reads.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    serialized: bytes = model.SerializeToString()
    return serialized


if __name__ == "__main__":
    print(json.dumps(measure_peak(json.loads(sys.argv[1])["threads"])))
