"""Weight-only quantization: weights in 4 or 8 bits, activations in float32. Needs no data; texts make it more accurate.

Matrix products, token embeddings and mixtures of experts are stored in blocks (rounding.py); an embedding that is tied
to the language model head is stored once. Norms, biases, positions and routers stay as they are.

Measured on trained weights (a Llama of 6 million parameters; divergence KL(float32 | quantized) of the next token, in
thousandths; perplexity grows by about a tenth of that in percent):

    4 bits, blocks of 16: 2.5; 32: 3.5 with zero points, 3.9 without; 64: 4.5; 128: 5.4
    4 bits, blocks of 32: 1.1 with head and embedding in 8 bits; 1.7 calibrated, 0.3 with both
    8 bits, blocks of 32: 0.05; 64: 0.06; 128: 0.08

Speed of one product of 2,048 inputs and outputs in onnxruntime 1.32 on 2 cores of an AMD EPYC with VNNI, microseconds
for one token and 10^9 multiplications a second for 128:

    4 bits, blocks of 32: 42, 275; 64: 33, 301; 128: 19, 398
    8 bits, blocks of 32: 57, 306; 64: 51, 356; 128: 43, 393

Does not decide whether the result is accurate enough; the gate and the evaluation do.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxpress.quantize.block_nodes import BlockNodes
from onnxpress.quantize.gptq import DAMPING, Feeds, hessians, round_with_compensation
from onnxpress.quantize.graphs import PassReport, count_ops
from onnxpress.quantize.products import Found, Weight, find_weights
from onnxpress.quantize.rounding import (
    BLOCK_SIZES,
    MOST_FILLED,
    FloatArray,
    Rounded,
    fitting_block_size,
    round_to_nearest,
)
from onnxpress.runtime.errors import InvalidInputError

_TIED_DAMPING = 0.1
"""Of GPTQ for a head that is an embedding too: spreading errors over a row helps the product and hurts the lookup."""


@dataclasses.dataclass(frozen=True)
class WeightOnlyConfig:
    """How weights become 4 or 8 bits.

    Raises:
        InvalidInputError: a value that is not allowed.
    """

    bits: int = 4
    """4 or 8"""
    block_size: int | None = None
    """Weights of one output that share a scale: 16, 32, 64 or 128; None: `largest_block`, or less where that would fill
    a row of weights up by more than an eighth."""
    largest_block: int = BLOCK_SIZES[0]
    symmetric: bool | None = None
    """Without zero points; None: where there are 8 bits, for which they gain nothing."""
    accuracy_level: int = 4
    """What products compute in. 4: the kernel may quantize activations to 8 bits, block by block, which costs a
    hundredth of what weights of 4 bits do and is much faster on a CPU (20 times with 8 bits). 0 or 1: float32."""
    embeddings: bool = True
    """Also the embeddings of tokens; those of positions never."""
    head_bits: int | None = None
    """Bits of the language model head and of token embeddings, 4 or 8; None: as `bits`."""
    exclude: tuple[str, ...] = ()
    """Names of nodes, or of weights, to leave in float32."""

    def __post_init__(self) -> None:
        for field, allowed in _ALLOWED.items():
            value = getattr(self, field)
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed)
                raise InvalidInputError(f"weight-only quantization with {field} {value!r}: give one of {choices}")

    @property
    def label(self) -> str:
        """A short description for people."""
        zeros = "" if self.symmetric_for(self.bits) else " with zero points"
        head = f", head and embedding in {self.head_bits} bits" if self.head_bits not in (None, self.bits) else ""
        size = self.block_size or f"up to {self.largest_block}"
        return f"{self.bits}-bit weights in blocks of {size}{zeros}{head}"

    def block_for(self, inputs: int, room: float = MOST_FILLED) -> int:
        """The block size of a weight of so many inputs. `room`: how much of a row may be filled up, as a share."""
        return self.block_size or fitting_block_size(inputs, room, self.largest_block)

    def symmetric_for(self, bits: int) -> bool:
        """Whether a weight of so many bits has no zero points."""
        return bits == 8 if self.symmetric is None else self.symmetric


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "bits": (4, 8),
    "block_size": (None, *reversed(BLOCK_SIZES)),
    "largest_block": tuple(reversed(BLOCK_SIZES)),
    "symmetric": (None, False, True),
    "accuracy_level": (0, 1, 4),
    "head_bits": (None, 4, 8),
}


def quantize_weights(
    source: Path,
    target: Path,
    config: WeightOnlyConfig = WeightOnlyConfig(),
    calibration: Sequence[Feeds] | None = None,
) -> PassReport:
    """Write a copy of an ONNX file with its weights in few bits. One matrix at a time is in memory in float32.

    Args:
        source: float32 model.
        target: where to write it; weights go to `<target name>.data` beside it.
        config: how weights become few bits.
        calibration: inputs of the graph without padding, some 30,000 tokens of text, to round by GPTQ (gptq.py);
            None: each weight is rounded by itself. Experts always are.

    Raises:
        InvalidInputError: `calibration` is empty or too short, or `config.exclude` names what the graph does not have.
    """
    model = onnx.load(str(source), load_external_data=False)
    _check_names(model, config.exclude)
    before = count_ops(model)
    found = find_weights(model, config.exclude)
    nodes = BlockNodes(model, source.parent, config.accuracy_level)
    weights = _worthwhile(found, nodes, config)
    for weight, rounded in _rounded(weights, nodes, config, source, calibration):
        if weight.products:
            nodes.replace_products(weight, rounded)
        if weight.lookups and config.embeddings:
            nodes.replace_lookups(weight, rounded)
    for node in found.experts:
        _replace_experts(node, nodes, config, found)
    nodes.save(target)
    after = count_ops(model)
    return PassReport.between(
        before,
        after,
        name=f"quantize weights to int{config.bits}",
        summary=_summary(after, weights, config, calibration is not None),
        float32_nodes=tuple(f"{name} ({reason})" for name, reason in found.left.items()),
    )


def _check_names(model: onnx.ModelProto, names: Sequence[str]) -> None:
    known = {item.name for item in (*model.graph.node, *model.graph.initializer)}
    if unknown := [name for name in names if name not in known]:
        raise InvalidInputError(f"{', '.join(unknown)} to leave in float32: the graph has no such node or weight")


def _worthwhile(found: Found, nodes: BlockNodes, config: WeightOnlyConfig) -> list[Weight]:
    """All but embeddings that are not wanted, or that something else needs in float32 anyhow."""
    weights = []
    for weight in found.weights:
        if weight.products or (config.embeddings and nodes.readers(weight.name) == len(weight.lookups)):
            weights.append(weight)
        elif config.embeddings:
            found.left |= {node.name or node.output[0]: "its weight is read elsewhere" for node in weight.lookups}
    return weights


def _rounded(
    weights: Sequence[Weight],
    nodes: BlockNodes,
    config: WeightOnlyConfig,
    source: Path,
    calibration: Sequence[Feeds] | None,
) -> Iterator[tuple[Weight, Rounded]]:
    """Each weight, rounded."""
    left = {id(weight): weight for weight in weights}
    if calibration is not None:
        readers: dict[str, list[Weight]] = {}
        for weight in weights:
            if weight.products:
                readers.setdefault(weight.products[0].activation, []).append(weight)
        channels = {activation: together[0].inputs for activation, together in readers.items()}
        for activation, H in hessians(source, channels, calibration):
            for weight, rounded in _compensated(readers[activation], H, nodes, config):
                del left[id(weight)]
                yield weight, rounded
    for weight in left.values():
        bits = _bits(weight, config)
        block = config.block_for(weight.inputs)
        yield weight, round_to_nearest(_matrix(weight, nodes), bits, block, config.symmetric_for(bits))


def _compensated(
    weights: Sequence[Weight], H: FloatArray, nodes: BlockNodes, config: WeightOnlyConfig
) -> Iterator[tuple[Weight, Rounded]]:
    """Weights of products that read the same activation."""
    alike: dict[tuple[int, float], list[Weight]] = {}
    for weight in weights:
        damping = _TIED_DAMPING if weight.lookups and config.embeddings else DAMPING
        alike.setdefault((_bits(weight, config), damping), []).append(weight)
    for (bits, damping), group in alike.items():
        matrices = [_matrix(weight, nodes) for weight in group]
        block = config.block_for(len(H))
        made = round_with_compensation(matrices, H, bits, block, config.symmetric_for(bits), damping)
        yield from zip(group, made, strict=True)


def _replace_experts(node: onnx.NodeProto, nodes: BlockNodes, config: WeightOnlyConfig, found: Found) -> None:
    names = (node.input[2], node.input[4])
    widths = [nodes.sizes(name)[2] for name in names]
    block = config.block_for(math.gcd(*widths), room=0)  # the two share one block size
    if any(width % block for width in widths):
        found.left[node.name or node.output[0]] = f"its sizes are no multiples of {block}"
        return
    gate_up, down = (
        round_to_nearest(nodes.read(name).reshape(-1, width), config.bits, block, config.symmetric_for(config.bits))
        for name, width in zip(names, widths, strict=True)
    )
    nodes.replace_experts(node, gate_up, down)


def _bits(weight: Weight, config: WeightOnlyConfig) -> int:
    of_head = config.head_bits if weight.is_last or weight.lookups else None
    return of_head or config.bits


def _matrix(weight: Weight, nodes: BlockNodes) -> FloatArray:
    """[outputs, inputs]"""
    stored = nodes.read(weight.name)
    return stored if weight.by_output else stored.T


def _summary(after: Counter[str], weights: Sequence[Weight], config: WeightOnlyConfig, calibrated: bool) -> str:
    parts = [f"{after['MatMulNBits']} matrix products with {config.label}"]
    if after["QMoE"]:
        parts.append(f"{after['QMoE']} mixtures of experts")
    if after["GatherBlockQuantized"]:
        tied = any(weight.products and weight.lookups for weight in weights)
        parts.append("token embedding stored once with the head" if tied else "token embedding")
    parts.append("rounded by GPTQ" if calibrated else "rounded without data")
    return ", ".join(parts)
