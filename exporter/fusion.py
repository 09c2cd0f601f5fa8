"""Graph forms worth measuring for a target. Which one is used is a measurement (see `fastest`), not a belief.

`skip` below is the residual branch: SkipLayerNormalization(x, skip, scale, shift, bias) is
LayerNormalization(x + skip + bias, scale, shift).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime

from onnxpress.quantize.graphs import PassReport, save_program
from onnxpress.runtime.manifest import SessionSettings, Tensor
from onnxpress.runtime.session import make_session, runner
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import Case, check_parity

_CLEARLY_FASTER = 0.98  # a smaller gain is within the spread of such a short measurement
# onnxruntime fuses residual additions into SkipLayerNormalization while loading. Its CPU kernel (1.28 to 1.32) took
# about nine times as long as the addition and LayerNormalization it replaces.
_UNFUSED_SKIP = SessionSettings(disabled_optimizers=("SkipLayerNormFusion",))


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to write and open the same computation."""

    name: str
    make: Callable[[onnx_ir.Model], None]
    """Rewrites the traced graph in place."""
    session: SessionSettings


def forms(target: str) -> tuple[Form, ...]:
    """Forms for a target; the first is the traced graph as it is."""
    plain = Form("as traced", lambda program: None, SessionSettings())
    if target == "cpu":
        return (
            plain,
            Form("as traced, residual additions left unfused", lambda program: None, _UNFUSED_SKIP),
            Form("attention fused, residual additions left unfused", _fuse_attention_only, _UNFUSED_SKIP),
        )
    if target == "cuda":
        return (plain, Form("attention, norms and GELU fused", _fuse_for_cuda, SessionSettings()))
    return (plain,)  # TensorRT fuses by itself and knows none of onnxruntime's own operators


def write_form(form: Form, traced: Path, folder: Path) -> tuple[Path, PassReport]:
    """Rewrite the traced graph into `form` and save it in `folder`."""
    program = onnx_ir.load(traced)
    before = _count(program)
    form.make(program)
    _drop_unknown_types(program)
    after = _count(program)
    path = folder / "model.onnx"
    save_program(program, path)
    counts = {name: after[name] for name in sorted(after) if after[name] > before[name]}
    fused = ", ".join(f"{count} {name}" for name, count in counts.items())
    return path, PassReport(
        name="fuse",
        summary=f"{form.name}{': ' + fused if fused else ''}",
        nodes_before=before.total(),
        nodes_after=after.total(),
        counts=counts,
    )


def try_form(
    form: Form, traced: Path, folder: Path, cases: Sequence[Case], outputs: Sequence[Tensor], bound: float
) -> tuple[Path, PassReport] | None:
    """`write_form`; None where the form cannot be made of this graph, or does not compute what it computes.

    Args:
        form: which one.
        traced: the graph.
        folder: where to write.
        cases: what to compare on; none, where this machine has no kernels for the form.
        outputs: of the graph.
        bound: of the largest difference, see `check_parity`.
    """
    try:
        written = write_form(form, traced, folder)
        if not cases:
            return written
        session = make_session(written[0], form.session, settings=ServingSettings(1))
        run = runner(session, [tensor.name for tensor in outputs])
        return written if check_parity(run, cases, outputs, "max_abs", bound).passed else None
    except OSError:  # such as a full disk
        raise
    # The fusions are written for graphs of PyTorch's exporter; what they raise on others is not foreseen.
    except Exception:  # noqa: BLE001
        return None


def time_forms(
    candidates: Sequence[tuple[Path, SessionSettings]], cases: Sequence[Case], seconds: float
) -> list[float]:
    """Median milliseconds each graph takes for all of `cases` once, run in turn on one thread.

    One thread each, because throughput comes from one-thread runs side by side, and idle sessions then have no
    spinning threads that slow the one being timed.
    """
    runs = [_runner(path, settings, cases) for path, settings in candidates]
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 50):
        for run, record in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            record.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(record) for record in times]


def fastest(milliseconds: Sequence[float]) -> int:
    """Index of the form to use: the first, the simplest, unless a later one is clearly faster."""
    best = 0
    for index, taken in enumerate(milliseconds):
        if taken < milliseconds[best] * _CLEARLY_FASTER:
            best = index
    return best


def _runner(path: Path, settings: SessionSettings, cases: Sequence[Case]) -> Callable[[], None]:
    session = make_session(path, settings, settings=ServingSettings(1))

    def run() -> None:
        for case in cases:
            session.run(None, case.feeds)

    return run


def _fuse_for_cuda(program: onnx_ir.Model) -> None:
    fuse_for_onnxruntime(program, "cuda")


def _fuse_attention_only(program: onnx_ir.Model) -> None:
    """All fusions of the CUDA form, whose operators have CPU kernels too, except the residual additions."""
    fuse_for_onnxruntime(program, "cuda")
    for node in list(program.graph.all_nodes()):
        if node.op_type == "SkipLayerNormalization" and node.domain == "com.microsoft":
            _unfuse_skip_norm(node)


def _unfuse_skip_norm(node: onnx_ir.Node) -> None:
    """SkipLayerNormalization(x, skip, scale, shift?, bias?) -> Add, (Add,) LayerNormalization; all [b, s, h]."""
    x, skip, scale, shift, bias = (*node.inputs, None, None)[:5]
    graph = node.graph
    assert graph is not None
    assert x is not None
    tape = onnx_ir.tape.Tape()
    # The bias first: onnxruntime can then keep it with the matrix product that x comes from.
    biased: Any = x if bias is None else tape.op("Add", [x, bias])
    total = tape.op("Add", [biased, skip])
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    inputs = [total, scale] if shift is None else [total, scale, shift]
    result = tape.op("LayerNormalization", inputs, attributes={"axis": -1, "epsilon": epsilon})
    for value in (biased, total, result):
        if value is not x:
            value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, tape.nodes)
    node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    if len(node.outputs) > 3:  # the sum before normalisation, the residual of the next block
        node.outputs[3].replace_all_uses_with(total, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _drop_unknown_types(program: onnx_ir.Model) -> None:
    """Fusions copy the types of values, also of those whose type a graph from elsewhere does not say; such a type of
    no element type cannot be written."""
    for node in program.graph.all_nodes():
        for value in node.outputs:
            if value.type is not None and value.dtype is None:
                value.type = None


def _count(program: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in program.graph.all_nodes())
