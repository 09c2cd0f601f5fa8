"""Half precision: weights and activations in float16, graph inputs and outputs unchanged.

The conversion is onnxconverter-common's; this module is the only one that uses it, and it repairs what version 1.16
breaks: it needs the type of every value to wrap the nodes that stay in float32, it leaves `Cast` targets as they were,
and it gives a weight one type for all its readers, so that converted and unconverted values meet in one node and the
model does not load.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxconverter_common import float16

from onnxpress.quantize.graphs import PassReport, count_ops, load_graph, save_graph

HALF_MAX = 65504.0
"""The largest finite float16 (IEEE 754 binary16)."""
_MASK_FILL = 1e30  # larger values only ever say "minus infinity" to a softmax
_FILL_IN_HALF = 1e4  # what stands for them in float16: exp(-1e4) is 0, and adding scores to it does not overflow

# Sums over many tokens or features: cheap, and float16 drops the small terms.
_SUMS = ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "CumSum", "Pow")

_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)

Feeds = dict[str, npt.NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Fp16Config:
    """What stays in float32."""

    headroom: float = 2.0
    """Nodes that see values above 65504 / headroom stay in float32."""
    keep_ops: tuple[str, ...] = _SUMS
    """Operators that stay in float32 wherever they are."""


def convert_fp16(source: Path, target: Path, feeds: Sequence[Feeds], config: Fp16Config = Fp16Config()) -> PassReport:
    """Write a float16 copy of an ONNX file that keeps overflow-prone nodes in float32.

    Args:
        source: float32 model.
        target: where to write it; weights go to `<target name>.data` beside it.
        feeds: inputs to run the float32 model on, to find the nodes whose values float16 cannot hold.
        config: what stays in float32.
    """
    model = load_graph(source)
    _name_nodes(model)
    before = count_ops(model)
    overflowing = find_overflows(model, feeds, HALF_MAX / config.headroom)
    indexing = find_index_arithmetic(model)
    kept = {*overflowing, *indexing}
    casts = {node.name for node in model.graph.node if node.op_type == "Cast"} - kept
    converted = _convert(model, kept, config)
    _repair_casts(converted, casts)
    del converted.graph.value_info[:]  # the converter leaves stale types there, and onnxruntime trusts them
    save_graph(converted, target)
    after = count_ops(converted)
    return PassReport(
        name="convert to fp16",
        summary=f"{len(kept)} nodes and all {_in_words(before, config.keep_ops)} kept in float32",
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        counts={"Cast": after["Cast"] - before["Cast"]},
        float32_nodes=(
            *(f"{name} (reaches {value:.3g})" for name, value in overflowing.items()),
            *(f"{name} (computes an index)" for name in indexing if name not in overflowing),
        ),
    )


def find_overflows(model: onnx.ModelProto, feeds: Sequence[Feeds], limit: float) -> dict[str, float]:
    """Nodes that read or write a magnitude beyond `limit`, and the largest one seen, in graph order.

    Values at 1e30 and beyond are masks and do not count.
    """
    peaks = _peaks(model, feeds)
    found = {}
    for node in model.graph.node:
        values = [peaks[name] for name in (*node.input, *node.output) if name in peaks]
        if values and max(values) > limit:
            found[node.name] = max(values)
    return found


def find_index_arithmetic(model: onnx.ModelProto) -> list[str]:
    """Nodes whose float32 result ends up as an integer, in graph order.

    Relative positions are put into buckets by a logarithm and a cast (MPNet, T5); in float16 the bucket is another one.
    """
    types = {info.name: info.type.tensor_type.elem_type for info in _inferred_values(model)}
    wanted: set[str] = set()
    found = []
    for node in reversed(model.graph.node):
        floats = [name for name in node.input if types.get(name) == onnx.TensorProto.FLOAT]
        if node.op_type == "Cast" and floats and types.get(node.output[0]) in _INTEGERS:
            wanted.update(floats)
        elif wanted.intersection(node.output):
            wanted.update(floats)
            found.append(node.name)
    return found[::-1]


def _peaks(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> dict[str, float]:
    """The largest finite magnitude below the mask fill of every float32 weight and activation."""
    peaks = {
        tensor.name: _peak(onnx.numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {output.name for output in probe.graph.output}
    for info in _inferred_values(model):
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and info.name not in outputs:
            probe.graph.output.append(info)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        save_graph(probe, path)
        options = onnxruntime.SessionOptions()
        # As written: a fused node would hide the values between the nodes it replaces.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for feed in feeds:
        for name, value in zip(names, session.run(None, feed), strict=True):
            peaks[name] = max(peaks.get(name, 0.0), _peak(value))
    return peaks


def _peak(values: npt.NDArray[np.float32]) -> float:
    magnitudes = np.abs(values)
    return float(np.max(magnitudes, initial=0.0, where=magnitudes < _MASK_FILL))


def _inferred_values(model: onnx.ModelProto) -> Sequence[onnx.ValueInfoProto]:
    """Types of all values, inferred anew: what a graph carries may be stale or incomplete."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    return list(onnx.shape_inference.infer_shapes(bare).graph.value_info)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: the converter is told by name which ones to keep, and names what it adds."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{node.output[0]}_{number}"
        taken.add(node.name)


def _convert(model: onnx.ModelProto, nodes: set[str], config: Fp16Config) -> onnx.ModelProto:
    kept_ops = [*float16.DEFAULT_OP_BLOCK_LIST, *config.keep_ops]
    _separate_weights(model, nodes, set(kept_ops))
    complete = _inferred_values(model)
    del model.graph.value_info[:]
    model.graph.value_info.extend(complete)
    with warnings.catch_warnings():
        # One warning for each weight that is tiny or a mask; both are meant.
        warnings.simplefilter("ignore", UserWarning)
        return float16.convert_float_to_float16(
            model,
            max_finite_val=_FILL_IN_HALF,
            keep_io_types=True,
            disable_shape_infer=True,
            op_block_list=kept_ops,
            node_block_list=list(nodes),
        )


def _separate_weights(model: onnx.ModelProto, nodes: set[str], ops: set[str]) -> None:
    """Give the nodes that stay in float32 their own copy of every weight that a converted node reads too."""
    converted: set[str] = set()
    kept = []
    for node in model.graph.node:
        if node.name in nodes or node.op_type in ops:
            kept.append(node)
        else:
            converted.update(node.input)
    shared = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in converted
    }
    copied: set[str] = set()
    for node in kept:
        for index, name in enumerate(node.input):
            if name not in shared:
                continue
            node.input[index] = own = f"{name}_float32"
            if own not in copied:
                copied.add(own)
                model.graph.initializer.append(shared[name])
                model.graph.initializer[-1].name = own


def _repair_casts(model: onnx.ModelProto, casts: set[str]) -> None:
    """Let the original casts to float32 give what their readers now take, float16."""
    for node in model.graph.node:
        if node.name in casts:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = onnx.TensorProto.FLOAT16


def _in_words(before: Counter[str], names: Sequence[str]) -> str:
    return ", ".join(f"{name}" for name in names if before[name]) or "sums"
