"""Half precision: weights and activations in float16 or bfloat16, graph inputs and outputs mostly unchanged.

The conversion is onnxconverter-common's; this module is the only one that uses it, and it repairs what version 1.16
breaks: it needs the type of every value to wrap the nodes that stay in float32, it leaves `Cast` targets as they were,
and it gives a weight one type for all its readers, so that converted and unconverted values meet in one node and the
model does not load.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16

from onnxpress.quantize.graphs import PassReport, count_ops, load_graph, name_nodes, save_graph
from onnxpress.quantize.probing import MASK_FILL, open_probe

HALF_MAX = 65504.0
"""The largest finite float16 (IEEE 754 binary16)."""
_FILL_IN_HALF = 1e4  # stands for `MASK_FILL` in float16: exp(-1e4) is 0, and adding scores to it does not overflow

# Sums over many tokens or features: cheap, and float16 drops the small terms.
_SUMS = ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "CumSum", "Pow")

_UNUSED = "onnxpress.unused"
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
# onnxruntime's names of element types that differ from those of ONNX.
_ELEMENTS = {"float": TensorProto.FLOAT, **{name.lower(): kind for name, kind in TensorProto.DataType.items()}}

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Fp16Config:
    """What stays in float32."""

    headroom: float = 2.0
    """Nodes that see values above 65504 / headroom stay in float32."""
    keep_ops: tuple[str, ...] = _SUMS
    """Operators that stay in float32 wherever they are."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """bfloat16 has the range of float32, so that nothing overflows, and 8 bits of precision."""
    half_io: tuple[str, ...] = ()
    """How names of inputs and outputs begin that become half precision too; the nodes at them do in any case."""
    positions: tuple[str, ...] = ()
    """Inputs that positions of tokens come from. What is computed of these alone, such as angles, stays in float32:
    float16 counts to 2048."""


def convert_fp16(source: Path, target: Path, feeds: Iterable[Feeds], config: Fp16Config = Fp16Config()) -> PassReport:
    """Write a copy of an ONNX file in half precision that keeps overflow-prone nodes in float32.

    Args:
        source: float32 model.
        target: where to write it; weights go to `<target name>.data` beside it.
        feeds: inputs to run the float32 model on, to find the nodes whose values float16 cannot hold.
        config: what stays in float32.
    """
    model = load_graph(source)
    name_nodes(model)
    before = count_ops(model)
    session = open_probe(source, as_written=True)
    types = _types(model, session)
    inner = _set_half_io(model, config)
    wide = config.dtype == "bfloat16"  # as float32
    peaks = {} if wide else _peaks(model, session, feeds)
    overflowing = {
        name: peak for name, peak in _beyond(model, peaks, HALF_MAX / config.headroom).items() if name not in inner
    }
    reasons = dict.fromkeys(find_index_arithmetic(model, types), "computes an index")
    reasons |= dict.fromkeys(find_position_arithmetic(model, types, config.positions), "computes with positions")
    reasons |= {name: f"reaches {peak:.3g}" for name, peak in overflowing.items()}
    kept = set(reasons)
    casts = {node.name for node in model.graph.node if node.op_type == "Cast"} - kept
    converted = _convert(model, types, kept, config)
    _repair_casts(converted, casts)
    del converted.graph.value_info[:]  # the converter leaves stale types there, and onnxruntime trusts them
    if wide:
        _widen(converted, source)
    save_graph(converted, target)
    after = count_ops(converted)
    return PassReport(
        name=f"convert to {'bf16' if wide else 'fp16'}",
        summary=f"{len(kept)} nodes and all {_in_words(before, config.keep_ops)} kept in float32",
        nodes_before=sum(before.values()),
        nodes_after=sum(after.values()),
        counts={"Cast": after["Cast"] - before["Cast"]},
        float32_nodes=tuple(f"{name} ({reasons[name]})" for name in dict.fromkeys([*overflowing, *reasons])),
    )


def _beyond(model: onnx.ModelProto, peaks: Mapping[str, float], limit: float) -> dict[str, float]:
    """Nodes that read or write a magnitude beyond `limit`, and the largest one seen, in graph order."""
    found = {}
    for node in model.graph.node:
        values = [peaks[name] for name in (*node.input, *node.output) if name in peaks]
        if values and max(values) > limit:
            found[node.name] = max(values)
    return found


def find_index_arithmetic(model: onnx.ModelProto, types: Mapping[str, int]) -> list[str]:
    """Nodes whose float32 result ends up as an integer, in graph order.

    Relative positions are put into buckets by a logarithm and a cast (MPNet, T5); in float16 the bucket is another one.

    Args:
        model: the graph.
        types: of its values.
    """
    wanted: set[str] = set()
    found = []
    for node in reversed(model.graph.node):
        floats = [name for name in node.input if types.get(name) == TensorProto.FLOAT]
        if node.op_type == "Cast" and floats and types.get(node.output[0]) in _INTEGERS:
            wanted.update(floats)
        elif wanted.intersection(node.output):
            wanted.update(floats)
            found.append(node.name)
    return found[::-1]


def find_position_arithmetic(model: onnx.ModelProto, types: Mapping[str, int], inputs: Sequence[str]) -> list[str]:
    """Nodes with float32 results that come from whole numbers of `inputs` and from weights alone, in graph order."""
    whole, derived = set(inputs), set[str]()
    found = []
    for node in model.graph.node:
        floats = [name for name in node.input if types.get(name) == TensorProto.FLOAT]
        kind = types.get(node.output[0])
        if kind in _INTEGERS and whole.intersection(node.input):
            whole.update(node.output)
        elif kind == TensorProto.FLOAT and (
            (node.op_type == "Cast" and node.input[0] in whole) or (floats and derived.issuperset(floats))
        ):
            derived.update(node.output)
            found.append(node.name)
    return found


def _types(model: onnx.ModelProto, session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Of all values but weights. What a graph carries may be stale or incomplete."""
    found = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for output in session.get_outputs():
        element = output.type.removeprefix("tensor(").removesuffix(")")
        found[output.name] = _ELEMENTS.get(element, TensorProto.UNDEFINED)
    return found


def _peaks(model: onnx.ModelProto, session: onnxruntime.InferenceSession, feeds: Iterable[Feeds]) -> dict[str, float]:
    """The largest finite magnitude below the mask fill of every float32 weight and activation."""
    peaks = {
        tensor.name: _peak(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    names = [output.name for output in session.get_outputs() if output.type == "tensor(float)"]
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            peaks[name] = max(peaks.get(name, 0.0), _peak(value))
    return peaks


def _peak(values: npt.NDArray[np.float32]) -> float:
    magnitudes = np.abs(values)
    return float(np.max(magnitudes, initial=0.0, where=magnitudes < MASK_FILL))


def _set_half_io(model: onnx.ModelProto, config: Fp16Config) -> set[str]:
    """Give the inputs and outputs that become half precision that type already, so that the converter leaves them; the
    nodes at them."""
    names = set()
    for value in (*model.graph.input, *model.graph.output):
        if config.half_io and value.name.startswith(config.half_io):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            names.add(value.name)
    return {node.name for node in model.graph.node if names.intersection((*node.input, *node.output))}


def _convert(model: onnx.ModelProto, types: Mapping[str, int], nodes: set[str], config: Fp16Config) -> onnx.ModelProto:
    kept_ops = [*float16.DEFAULT_OP_BLOCK_LIST, *config.keep_ops]
    _separate_weights(model, nodes, set(kept_ops))
    own = {value.name for value in (*model.graph.input, *model.graph.output)}
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, kind, None) for name, kind in types.items() if name not in own
    )
    _name_outputs(model)
    with warnings.catch_warnings():
        # One warning for each weight that is tiny or a mask; both are meant.
        warnings.simplefilter("ignore", UserWarning)
        converted = float16.convert_float_to_float16(
            model,
            max_finite_val=_FILL_IN_HALF,
            keep_io_types=True,
            disable_shape_infer=True,
            check_fp16_ready=False,  # inputs may be half precision already
            op_block_list=kept_ops,
            node_block_list=list(nodes),
        )
    for node in converted.graph.node:
        node.output[:] = ["" if name.startswith(_UNUSED) else name for name in node.output]
    return converted


def _name_outputs(model: onnx.ModelProto) -> None:
    """Give outputs that are left out a name for now: the converter takes those without for one value."""
    for number, node in enumerate(model.graph.node):
        node.output[:] = [name or f"{_UNUSED}.{number}.{place}" for place, name in enumerate(node.output)]


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
        if tensor.data_type == TensorProto.FLOAT and tensor.name in converted
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
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16


def _widen(model: onnx.ModelProto, source: Path) -> None:
    """float16 to bfloat16 everywhere; weights are rounded anew, because float16 cuts off what bfloat16 holds."""
    originals = {tensor.name: tensor for tensor in onnx.load(str(source), load_external_data=False).graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            original = TensorProto()
            original.CopyFrom(originals[tensor.name])  # reading would keep the values
            tensor.CopyFrom(_as_bfloat16(numpy_helper.to_array(original, str(source.parent)), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            elif attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_as_bfloat16(numpy_helper.to_array(attribute.t), attribute.t.name))


def _as_bfloat16(values: npt.NDArray[Any], name: str) -> TensorProto:
    return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), name)


def _in_words(before: Counter[str], names: Sequence[str]) -> str:
    return ", ".join(f"{name}" for name in names if before[name]) or "sums"
