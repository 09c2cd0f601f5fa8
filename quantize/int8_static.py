"""Static INT8: weights of matrix products in 8 bits, and activations in 8 bits of a range found on texts beforehand.

Each product x W becomes DequantizeLinear(QuantizeLinear(x)) DequantizeLinear(W as integers), of which onnxruntime makes
an integer product while loading (MatMulIntegerToFloat; of a Gemm, QGemm). Results stay in float32 and keep their names,
so that each product is quantized on its own and can be taken out again.

On a CPU with VNNI that is as fast as dynamic INT8 within a few percent (MiniLM, onnxruntime 1.32), which looks for the
range of each activation while it runs. It differs in what it does to outliers: they may be cut off, or moved to the
weights (migration.py). Activations are unsigned by default: with signed ones, MiniLM took 1.7 times as long for 4,096
tokens and 5.7 times for 16.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from onnxpress.quantize.activations import Feeds, products_by_activation
from onnxpress.quantize.graphs import (
    PassReport,
    count_ops,
    drop_initializer_shapes,
    load_graph,
    name_nodes,
    replace_messages,
    save_graph,
)
from onnxpress.quantize.migration import MigrationConfig, migrate_scales
from onnxpress.quantize.ranges import METHODS, Method, Range, find_ranges
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.hardware import int8_kinds, signed_activations
from onnxpress.runtime.machine import Machine

_OPSET = 13
"""The first one whose DequantizeLinear has a scale for each channel."""


@dataclasses.dataclass(frozen=True)
class Int8StaticConfig:
    """How weights and activations become 8 bits.

    Raises:
        InvalidInputError: a value that is not allowed.
    """

    method: Method = "minmax"
    """How the range of an activation is found (ranges.py)."""
    percentile: float = 99.99
    """For the method of that name: the share of an activation's values inside its range, in percent."""
    per_channel: bool = True
    """One scale for each output channel of a weight instead of one for the whole weight."""
    symmetric: bool = False
    """Ranges of activations are as far below 0 as above."""
    signed: bool = True
    """Weights are signed integers."""
    signed_activations: bool = False
    """Activations too."""
    reduce_range: bool = False
    """Use 7 of the 8 bits of weights."""
    migration: MigrationConfig | None = None
    """Move the scales of channels from activations to weights first; None: leave them."""
    exclude: tuple[str, ...] = ()
    """Names of products, or of their outputs, to leave in float32."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInputError(f"unknown calibration method {self.method!r}; give one of: {', '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise InvalidInputError(f"percentile is {self.percentile}; give a number above 50 and up to 100")
        if self.signed_activations and not self.signed:
            raise InvalidInputError("signed activations need signed weights: onnxruntime has no product of the others")

    @property
    def label(self) -> str:
        """A short description for people."""
        method = f"percentile {self.percentile:g}" if self.method == "percentile" else self.method
        ranges = f"{'symmetric ' if self.symmetric else ''}{method} ranges"
        bits = "7-bit" if self.reduce_range else "8-bit"
        weights = f"{'signed' if self.signed else 'unsigned'} {bits} weights"
        scale = "channel" if self.per_channel else "tensor"
        signed = ", signed activations" if self.signed_activations else ""
        moved = f", scales migrated ({self.migration.alpha:g})" if self.migration else ""
        return f"{ranges}, {weights}, per {scale}{signed}{moved}"


def candidates(
    machine: Machine,
    methods: Sequence[Method] = ("minmax", "percentile"),
    migrations: Sequence[MigrationConfig | None] = (None, MigrationConfig()),
) -> tuple[Int8StaticConfig, ...]:
    """Settings worth comparing on a processor. Which are best depends on the model more than on anything else: with
    outliers that carry nothing, cutting them off; with outliers that matter, moving their scale to the weights."""
    kind = int8_kinds(machine)[0]
    return tuple(
        Int8StaticConfig(
            method,
            migration=migration,
            signed=kind.signed,
            reduce_range=kind.reduce_range,
            signed_activations=signed_activations(machine),
        )
        for migration in migrations
        for method in methods
    )


def quantize_int8_static(source: Path, target: Path, config: Int8StaticConfig, feeds: Sequence[Feeds]) -> PassReport:
    """Write a statically quantized copy of an ONNX file.

    Args:
        source: float32 model.
        target: where to write it; weights go to `<target name>.data` beside it.
        config: how weights and activations become 8 bits.
        feeds: inputs to find the ranges of activations on; real texts.

    Raises:
        InvalidInputError: no real token is in `feeds`, or `config.exclude` names what the graph does not have.
        UnsupportedModelError: there is nothing to quantize, or an activation is not a finite number.
    """
    model = load_graph(source)
    drop_initializer_shapes(model)
    name_nodes(model)
    _check(model, config)
    before = count_ops(model)
    moved = migrate_scales(model, feeds, config.migration, config.exclude) if config.migration else 0
    products = products_by_activation(model, exclude=config.exclude)
    if not products:
        raise UnsupportedModelError("it has no matrix product with a constant weight")
    ranges = find_ranges(model, list(products), feeds, config.method, config.percentile, config.symmetric)
    quantized = _quantize(model, products, ranges, config)
    save_graph(quantized, target)
    after = count_ops(quantized)
    count = sum(map(len, products.values()))
    return PassReport.between(
        before,
        after,
        name="quantize to static int8",
        summary=f"{count} matrix products in int8: {config.label}"
        + (f" ({moved} activations scaled)" if config.migration else ""),
        float32_nodes=tuple(f"{name} (excluded)" for name in config.exclude),
    )


def _check(model: onnx.ModelProto, config: Int8StaticConfig) -> None:
    known = {name for node in model.graph.node for name in (node.name, *node.output)}
    if unknown := [name for name in config.exclude if name not in known]:
        raise InvalidInputError(f"{', '.join(unknown)} to leave in float32: the graph has no such node or value")
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version < _OPSET:
        raise UnsupportedModelError(f"its operator set is {version}; static int8 needs {_OPSET} or later")


def _quantize(
    model: onnx.ModelProto,
    products: dict[str, list[onnx.NodeProto]],
    ranges: dict[str, Range],
    config: Int8StaticConfig,
) -> onnx.ModelProto:
    names = [node.name for nodes in products.values() for node in nodes]
    inputs = _detach(model, products)
    quantizer = QDQQuantizer(
        model,
        config.per_channel,
        config.reduce_range,
        QuantType.QInt8 if config.signed else QuantType.QUInt8,
        QuantType.QInt8 if config.signed_activations else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, {inputs[name]: found for name, found in ranges.items()}),
        names,
        [],
        ["MatMul", "Gemm"],
        {
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "DefaultTensorType": TensorProto.FLOAT,
            "ActivationSymmetric": config.symmetric,
        },
    )
    with _without_advice():
        quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    _attach(made, inputs)
    return made


def _detach(model: onnx.ModelProto, products: dict[str, list[onnx.NodeProto]]) -> dict[str, str]:
    """Let products read their activation through an Identity, and return its output's name by that of the activation.

    onnxruntime 1.32's quantizer lets all that reads a quantized activation read the rounded values, residual additions
    too: errors that gain nothing, and one more pass over the activation.
    """
    inputs = {activation: f"{activation}_int8_input" for activation in products}
    of_product = {node.name for nodes in products.values() for node in nodes}
    nodes, seen = [], set[str]()
    for node in model.graph.node:
        if node.name in of_product:
            activation = node.input[0]
            if activation not in seen:
                seen.add(activation)
                nodes.append(helper.make_node("Identity", [activation], [inputs[activation]], name=inputs[activation]))
            node.input[0] = inputs[activation]
        nodes.append(node)
    replace_messages(model.graph.node, nodes)
    # The quantizer leaves values alone whose type it does not know.
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs.values()
    )
    return inputs


def _attach(model: onnx.ModelProto, inputs: dict[str, str]) -> None:
    """Take the Identity nodes out again."""
    activations = {name: activation for activation, name in inputs.items()}
    nodes = [node for node in model.graph.node if node.name not in activations]
    for node in nodes:
        node.input[:] = [activations.get(name, name) for name in node.input]
    replace_messages(model.graph.node, nodes)
    replace_messages(model.graph.value_info, [info for info in model.graph.value_info if info.name not in activations])


@contextmanager
def _without_advice() -> Iterator[None]:
    """onnxruntime's quantizer gives advice through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
