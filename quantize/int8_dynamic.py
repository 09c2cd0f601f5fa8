"""Dynamic INT8: weights of matrix products in 8 bits, activations quantized while running. No calibration data needed.

Which 8 bits are right depends on the processor (runtime/hardware.py); `candidates` gives those worth measuring there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from onnxpress.quantize.activations import Feeds
from onnxpress.quantize.graphs import PassReport, count_ops, drop_initializer_shapes, load_graph, save_graph
from onnxpress.quantize.outliers import OutlierConfig, Tamed, tame_outliers
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.hardware import int8_kinds
from onnxpress.runtime.machine import Machine


@dataclasses.dataclass(frozen=True)
class Int8DynamicConfig:
    """How weights become 8 bits."""

    signed: bool = True
    per_channel: bool = True
    """One scale for each output channel instead of one for the whole weight."""
    reduce_range: bool = False
    """Use 7 of the 8 bits."""
    outliers: OutlierConfig | None = None
    """Keep outlier channels from ruining the activations' scale (outliers.py); None: leave them."""

    @property
    def label(self) -> str:
        """A short description for people."""
        bits = "7-bit" if self.reduce_range else "8-bit"
        scale = "channel" if self.per_channel else "tensor"
        tamed = ", outlier channels tamed" if self.outliers else ""
        return f"{'signed' if self.signed else 'unsigned'} {bits} weights, per {scale}{tamed}"


def candidates(machine: Machine) -> tuple[Int8DynamicConfig, ...]:
    """Settings worth measuring on a processor."""
    kinds = [Int8DynamicConfig(signed=kind.signed, reduce_range=kind.reduce_range) for kind in int8_kinds(machine)]
    return tuple(dataclasses.replace(kind, outliers=outliers) for kind in kinds for outliers in (None, OutlierConfig()))


def quantize_int8_dynamic(
    source: Path, target: Path, config: Int8DynamicConfig, feeds: Sequence[Feeds] = ()
) -> PassReport:
    """Write a dynamically quantized copy of an ONNX file.

    Args:
        source: float32 model.
        target: where to write it; weights go to `<target name>.data` beside it.
        config: how weights become 8 bits.
        feeds: inputs to find outlier channels with; needed where `config.outliers` is set.

    Raises:
        UnsupportedModelError: there is nothing to quantize.
    """
    model = load_graph(source)
    before = count_ops(model)
    # quantize_dynamic (onnxruntime 1.32) finds a weight's type in value_info first and fails on the entries that the
    # exporter writes for initializers: "Unable to find data type for weight_name".
    drop_initializer_shapes(model)
    tamed = tame_outliers(model, feeds, config.outliers) if config.outliers else Tamed(0, 0, ())
    quantized = _quantize(model, config, tamed.float32_products)
    after = count_ops(quantized)
    products = sum(after.get(name, 0) for name in ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"))
    if not products:
        raise UnsupportedModelError("it has no matrix product with a constant weight")
    save_graph(quantized, target)
    return PassReport.between(
        before,
        after,
        name="quantize to int8",
        summary=f"{products} matrix products in int8: {config.label}"
        + (f" ({tamed.smoothed} activations smoothed, {tamed.split} split)" if config.outliers else ""),
    )


def _quantize(model: onnx.ModelProto, config: Int8DynamicConfig, float32: Sequence[str]) -> onnx.ModelProto:
    options: dict[str, Any] = {
        # Products of two activations (attention scores) stay in float32: quantizing both costs more than it saves.
        "MatMulConstBOnly": True,
        "DefaultTensorType": onnx.TensorProto.FLOAT,
    }
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            written,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=list(float32),
            weight_type=QuantType.QInt8 if config.signed else QuantType.QUInt8,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            use_external_data_format=True,
            extra_options=options,
        )
        return load_graph(written)
