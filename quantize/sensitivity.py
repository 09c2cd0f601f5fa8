"""How much error each node adds on its own when it alone is quantized: what a search raises nodes back by.

One graph has both forms of every node and an input that switches between them (mixed.py), so that nothing is exported
again: it is run over all inputs once with every node in float32, once with every node quantized, and once for each
node alone. Where there is no time for the last, a second graph gives every node's local error in one pass - the
relative squared error of its own result for float32 inputs - and nodes that could not be measured are judged by it.

What is compared are the graph's outputs: of logits that become probabilities the divergence
KL(p || q) = sum p log(p / q), in nats, the mean over all rows or tokens; of all others, such as embeddings,
|a - b|^2 / |a|^2. Padding does not count.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from onnxpress.quantize.activations import is_transposed
from onnxpress.quantize.mixed import ERRORS, SIZES, SQUARES, SWITCHES, write_comparing, write_switchable
from onnxpress.quantize.splicing import Part, Splicer, open_part, weights_of
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings

Feeds = Mapping[str, npt.NDArray[Any]]
Array = npt.NDArray[Any]
Run = Callable[[Feeds], Sequence[Array]]
_MASK = "attention_mask"


@dataclasses.dataclass(frozen=True)
class Compared:
    """An output of a graph, and how two of its values are compared."""

    name: str
    kind: Literal["softmax", "sigmoid", "values"]
    """What makes probabilities of it, along the last axis; `values`: nothing does."""
    tokens: Literal["rows", "choices"] | None = None
    """What its second axis is, where that is the tokens: each gives a row of its own, or they are what is chosen from
    (an answer's first token)."""


@dataclasses.dataclass(frozen=True)
class NodeSensitivity:
    """What quantizing one node does and saves."""

    node: str
    op_type: str
    divergence: float
    """Of the outputs from float32, this node alone quantized."""
    measured: bool
    """False: estimated from the local error."""
    local_error: float
    """Relative squared error of the node's own result, for float32 inputs."""
    multiply_adds: int
    """Of the node over all inputs."""
    size_bytes: int
    """Of its weights in the quantized form."""
    float32_bytes: int


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The sensitivities of all nodes of a quantized graph."""

    precision: str
    divergence: float
    """Of the outputs from float32, all nodes quantized."""
    nodes: tuple[NodeSensitivity, ...]
    """In graph order."""
    inputs: int
    """How many rows were run."""
    seconds: float


class Divergence:
    """Sums up how far outputs are from float32, over several runs."""

    def __init__(self, outputs: Sequence[Compared]) -> None:
        self._outputs = outputs
        self._sums = np.zeros((len(outputs), 2))

    def add(self, feeds: Feeds, expected: Sequence[Array], found: Sequence[Array]) -> None:
        """Take the outputs of one run."""
        for index, (output, a, b) in enumerate(zip(self._outputs, expected, found, strict=True)):
            self._sums[index] += _difference(output, feeds, a, b)

    @property
    def value(self) -> float:
        """The mean over outputs; infinite where something is not a number."""
        ratios = self._sums[:, 0] / np.maximum(self._sums[:, 1], np.finfo(np.float64).tiny)
        mean = float(ratios.mean())
        return mean if np.isfinite(mean) else float("inf")


def _difference(output: Compared, feeds: Feeds, expected: Array, found: Array) -> tuple[float, float]:
    """What two values of an output add to the two sums whose ratio is the divergence."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    mask = feeds[_MASK].astype(bool) if _MASK in feeds else None
    if mask is not None and output.tokens == "choices":
        a, b = np.where(mask, a, -np.inf), np.where(mask, b, -np.inf)
    if mask is not None:
        rows = mask if output.tokens == "rows" else mask.any(axis=1)
        a, b = a[rows], b[rows]
    if output.kind == "values":
        return float(np.square(a - b).sum()), float(np.square(a).sum())
    p, q = (_log_softmax(value) if output.kind == "softmax" else _log_sigmoid(value) for value in (a, b))
    terms = _terms(p, q)
    if output.kind == "sigmoid":  # the other answer, too
        terms = terms + _terms(_log_sigmoid(-a), _log_sigmoid(-b))
    return float(terms.sum()), float(np.prod(a.shape[:-1]))


def _terms(p: Array, q: Array) -> Array:
    """exp(p) (p - q), of logarithms; 0 where a probability is."""
    with np.errstate(invalid="ignore"):  # minus infinity less itself
        return np.where(np.exp(p) > 0, np.exp(p) * (p - q), 0.0)


def _log_softmax(values: Array) -> Array:
    shifted = values - values.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _log_sigmoid(values: Array) -> Array:
    result: Array = -np.logaddexp(0.0, -values)
    return result


def measure_sensitivity(
    base: Path,
    part: Path,
    precision: str,
    feeds: Sequence[Feeds],
    outputs: Sequence[Compared],
    *,
    settings: SessionSettings | None = None,
    threads: int = 1,
    seconds: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Measure every node that a graph has quantized.

    Args:
        base: the float32 graph.
        part: a graph that was made from it and keeps the names of its values.
        precision: what to call it.
        feeds: inputs of the graph, real ones; at least one.
        outputs: which outputs are compared, and how.
        settings: how to open the graphs; None: as onnxruntime does by itself.
        threads: CPU threads.
        seconds: about how long it may take. Where one run for each node takes longer, fewer inputs are taken; where
            one input is still too much, nodes are measured in order of their local error, and the rest is estimated.
        progress: called with the number of nodes measured, and of all.
    """
    start = time.perf_counter()
    settings = settings or SessionSettings()
    splicer, opened = Splicer(open_part(base)), open_part(part)
    nodes = splicer.quantized_nodes(opened)
    if not nodes:
        return Sensitivity(precision, 0.0, (), 0, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        write_comparing(base, part, nodes, Path(folder) / "comparing.onnx")
        session = make_session(Path(folder) / "comparing.onnx", settings, settings=ServingSettings(threads))
        sums = [np.asarray(session.run([ERRORS, SQUARES, SIZES], dict(feed)), np.float64) for feed in feeds]
        write_switchable(base, part, nodes, Path(folder) / "switchable.onnx")
        switchable = make_session(Path(folder) / "switchable.onnx", settings, settings=ServingSettings(threads))
    names = [output.name for output in outputs]

    def run(feed: Feeds, switches: Array) -> Sequence[Array]:
        found: Sequence[Array] = switchable.run(names, {**feed, SWITCHES: switches})
        return found

    errors, squares, sizes = np.sum(sums, axis=0)
    local = errors / np.maximum(squares, np.finfo(np.float64).tiny)
    sweep = _Sweep(run, feeds, outputs, len(nodes))
    left = None if seconds is None else seconds - (time.perf_counter() - start)
    found = sweep.measure([int(index) for index in np.argsort(-local)], left, progress)
    estimated = _estimates(found, local, sweep.all_quantized)
    return Sensitivity(
        precision,
        sweep.all_quantized,
        tuple(
            _of_node(splicer, opened, name, found.get(index), estimated[index], float(local[index]), int(sizes[index]))
            for index, name in enumerate(nodes)
        ),
        sum(len(next(iter(feed.values()))) for feed in sweep.feeds),
        time.perf_counter() - start,
    )


class _Sweep:
    """Runs a switchable graph: all nodes in float32, all quantized, and each alone."""

    def __init__(
        self,
        run: Callable[[Feeds, Array], Sequence[Array]],
        feeds: Sequence[Feeds],
        outputs: Sequence[Compared],
        n: int,
    ) -> None:
        self._run, self._outputs, self._count = run, outputs, n
        self.feeds = list(feeds)
        start = time.perf_counter()
        off = np.zeros(n, bool)
        self._expected = [run(feed, off) for feed in self.feeds]
        self._seconds = time.perf_counter() - start
        self.all_quantized = self._divergence(np.ones(n, bool))

    def measure(
        self, order: Sequence[int], seconds: float | None, progress: Callable[[int, int], None]
    ) -> dict[int, float]:
        """The divergence that each node makes alone, as many as there is time for, in this order."""
        if seconds is not None:
            affordable = int(len(self.feeds) * seconds / (self._seconds * self._count)) if seconds > 0 else 0
            self.feeds = self.feeds[: max(1, affordable)]
        end = None if seconds is None else time.perf_counter() + seconds
        found: dict[int, float] = {}
        for index in order:
            if end is not None and time.perf_counter() > end:
                break
            found[index] = self._divergence(np.arange(self._count) == index)
            progress(len(found), self._count)
        return found

    def _divergence(self, switches: Array) -> float:
        divergence = Divergence(self._outputs)
        for feed, expected in zip(self.feeds, self._expected, strict=False):
            divergence.add(feed, expected, self._run(feed, switches))
        return divergence.value


def _estimates(found: Mapping[int, float], local: Array, together: float) -> Array:
    """Divergences by local errors alone: in the proportion that is the median among the nodes that were measured; where
    none was, so that they add up to that of all nodes together."""
    ratios = [value / local[index] for index, value in found.items() if local[index] > 0 and np.isfinite(value)]
    result: Array = local * (statistics.median(ratios) if ratios else together / max(local.sum(), 1e-30))
    return result


def _of_node(
    splicer: Splicer, part: Part, name: str, measured: float | None, estimated: float, local: float, size: int
) -> NodeSensitivity:
    node, base = splicer.nodes[name], splicer.base
    weights = weights_of(base, node)
    form = splicer.form(name, part, "")
    assert form is not None
    return NodeSensitivity(
        node=name,
        op_type=node.op_type,
        divergence=float(estimated) if measured is None else measured,
        measured=measured is not None,
        local_error=local,
        multiply_adds=round(size * _products(base, node, weights)),
        size_bytes=sum(part.size_bytes(weight) for weight, _ in form.weights),
        float32_bytes=sum(base.size_bytes(weight) for weight in weights),
    )


def _products(base: Part, node: NodeProto, weights: Sequence[str]) -> float:
    """How many multiplications each element of a node's result takes."""
    dims = [list(base.tensors[weight].dims) for weight in weights]
    if node.op_type == "Gather":
        return 0.0
    if node.op_type == "MoE":  # each token goes through k of the experts; the result has as many channels as the input
        chosen = next((attribute.i for attribute in node.attribute if attribute.name == "k"), 1)
        return float(sum(chosen * size[1] * size[2] for size in dims) / dims[-1][1])
    transposed = is_transposed(node)
    producer = base.producers.get(node.input[1])
    if producer is not None and producer.op_type == "Transpose":
        transposed = not transposed
    return float(dims[0][-1] if transposed else dims[0][-2])
