"""How far a variant's tensors are from another's, one by one in the order of the graph, and where that begins.

Tensors are matched by name: passes keep the names of the graph they start from. Both graphs run as they are written,
without onnxruntime's own fusions; where a quantized graph marks what a kernel would fuse (QDQ), what is seen is that in
float32, rounded to the same steps. divergence.py does the same for a variant that has failed while it is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxpress.exporter.debug_inputs import Feeds, make_feeds
from onnxpress.exporter.graph_modules import WRAPPER, modules_of
from onnxpress.quantize.probing import MASK_FILL, float_outputs, open_probe, sizes_of
from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.data.options import DataOptions
from onnxpress.runtime.errors import InvalidBundleError, InvalidInputError, first_line

DEFAULT_THRESHOLD = 20.0
"""Decibels: an error of a tenth of the signal."""
GROUP_BYTES = 256 * 2**20
"""What the tensors may take that are in memory at once, of each graph."""


@dataclasses.dataclass(frozen=True)
class TensorError:
    """One tensor of both graphs."""

    tensor: str
    node: str
    """In the reference, like `op_type`."""
    op_type: str
    variant_op_type: str
    """What computes it in the variant."""
    module: str | None
    """Path in the PyTorch model."""
    sqnr_db: float | None
    """10 log10(sum x^2 / sum (x - y)^2), x of the reference and y of the variant; None: they are equal, or `bad`."""
    relative_rms: float | None
    """sqrt(sum (x - y)^2 / sum x^2); None where that is no number."""
    bad: int
    """Values that are not finite where the reference's are."""

    def is_past(self, threshold: float) -> bool:
        """Whether the error is larger than a threshold in decibels allows."""
        return self.bad > 0 or (self.sqnr_db is not None and self.sqnr_db < threshold)


@dataclasses.dataclass(frozen=True)
class Debugged:
    """What was found."""

    variant: str
    against: str
    threshold: float
    runs: int
    first: TensorError | None
    """The first tensor past the threshold."""
    tensors: tuple[TensorError, ...]
    """In the order of the reference graph."""


def debug(
    bundle: Bundle,
    variant: str | None = None,
    against: str = "fp32",
    *,
    texts: Sequence[str] = (),
    evaluation: Sequence[Path] = (),
    data: DataOptions = DataOptions(),
    threshold: float = DEFAULT_THRESHOLD,
) -> Debugged:
    """Compare two variants of a bundle inside.

    Args:
        bundle: an opened bundle.
        variant: what is looked at; None: the default one.
        against: the reference.
        texts: what to run; with neither these nor `evaluation`, the real texts the bundle was verified on.
        evaluation: files of labelled examples; a few of them are run.
        data: how these are read.
        threshold: signal over error, in decibels.

    Raises:
        InvalidInputError: both are the same variant, the threshold is no number, the graphs have no tensor in common,
            or a text or file cannot be used.
        InvalidBundleError: there is no such variant, or one does not run on the CPU.
    """
    if not math.isfinite(threshold):
        raise InvalidInputError(f"the threshold is {threshold}; give a number of decibels")
    looked_at, reference = bundle.manifest.variant(variant), bundle.manifest.variant(against)
    if looked_at.name == reference.name:
        others = ", ".join(other.name for other in bundle.manifest.variants if other.name != against)
        raise InvalidInputError(
            f"the variant {against!r} would be compared with itself; choose another with --variant: {others or 'none'}"
        )
    feeds = make_feeds(bundle, reference.name, texts, evaluation, data)
    paths = bundle.model_path(reference), bundle.model_path(looked_at)
    tensors = tuple(tensor_errors(*paths, feeds, strip=WRAPPER if bundle.manifest.generation is None else ""))
    first = next((row for row in tensors if row.is_past(threshold)), None)
    return Debugged(looked_at.name, reference.name, threshold, len(feeds), first, tensors)


def tensor_errors(reference: Path, graph: Path, feeds: Sequence[Feeds], strip: str = "") -> Iterator[TensorError]:
    """The error of every float tensor that both graphs compute.

    Args:
        reference: the graph that is right.
        graph: the other.
        feeds: of each run, at least one.
        strip: what the paths of all modules begin with and should not.

    Raises:
        InvalidInputError: they have no tensor in common.
        InvalidBundleError: a graph does not run on the CPU.
    """
    ours, theirs = _producers(reference), _producers(graph)
    modules = modules_of(_nodes(reference), strip)  # nodes that a pass has made say nothing of theirs
    names = [name for name in ours if name in theirs]
    for group in _groups(reference, names, feeds):
        sums = _Sums(group)
        first, second = (_open(path, group) for path in (reference, graph))
        wanted = [name for name in group if name in {*float_outputs(first)} & {*float_outputs(second)}]
        for run in feeds:
            with _on_the_cpu():
                expected, found = (session.run(wanted, _fitting(session, run)) for session in (first, second))
            sums.add(wanted, expected, found)
        for name in wanted:
            if (error := sums.error(name)) is not None:
                yield _row(name, ours[name], theirs[name], modules.get(name), *error)


@contextlib.contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Around what onnxruntime does."""
    try:
        yield
    # onnxruntime's exception classes have no common base but Exception.
    except Exception as error:
        raise InvalidBundleError(f"one of the graphs does not run on the CPU: {first_line(error)}") from error


def _open(path: Path, names: Sequence[str]) -> onnxruntime.InferenceSession:
    with _on_the_cpu():
        return open_probe(path, names, as_written=True)


def _producers(path: Path) -> dict[str, onnx.NodeProto]:
    """The node that computes each tensor, in the order of the graph."""
    return {name: node for node in _nodes(path) for name in node.output if name}


def _nodes(path: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(str(path), load_external_data=False).graph.node)


def _groups(reference: Path, names: Sequence[str], feeds: Sequence[Feeds]) -> Iterator[list[str]]:
    """Tensors that together take no more than GROUP_BYTES, in order. The largest run decides."""
    session = _open(reference, names)
    known = set(float_outputs(session))
    floats = [name for name in names if name in known]
    if not floats:
        raise InvalidInputError("the two graphs have no tensor in common, so there is nothing to compare")
    largest = _fitting(session, max(feeds, key=lambda run: run["input_ids"].size))
    with _on_the_cpu():
        sizes = sizes_of(reference, floats, largest)
    group: list[str] = []
    taken = 0
    for name in floats:
        if group and taken + 4 * sizes[name] > GROUP_BYTES:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += 4 * sizes[name]
    yield group


def _fitting(session: onnxruntime.InferenceSession, feeds: Feeds) -> Feeds:
    """The inputs that a graph has, in its own type: a decoder's cache is in half precision where its graph is."""
    types = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    return {
        node.name: feeds[node.name].astype(types[node.type]) if node.type in types else feeds[node.name]
        for node in session.get_inputs()
    }


class _Sums:
    """Sums over all runs that the errors of tensors are made of."""

    def __init__(self, names: Sequence[str]) -> None:
        self._signal = dict.fromkeys(names, 0.0)
        self._error = dict.fromkeys(names, 0.0)
        self._bad = dict.fromkeys(names, 0)
        self._unlike: set[str] = set()

    def add(self, names: Sequence[str], expected: Sequence[Any], found: Sequence[Any]) -> None:
        """One run."""
        for name, x, y in zip(names, expected, found, strict=True):
            if x.shape != y.shape:
                self._unlike.add(name)
                continue
            counted = np.isfinite(x) & (np.abs(x) < MASK_FILL)
            x, y = x[counted].astype(np.float64), y[counted].astype(np.float64)
            finite = np.isfinite(y)
            self._bad[name] += int(np.count_nonzero(~finite))
            self._signal[name] += float(np.square(x).sum())
            self._error[name] += float(np.square((x - y)[finite]).sum())

    def error(self, name: str) -> tuple[float, float, int] | None:
        """Signal, error and bad values; None for a tensor that has another shape in the two graphs."""
        return None if name in self._unlike else (self._signal[name], self._error[name], self._bad[name])


def _row(
    name: str,
    ours: onnx.NodeProto,
    theirs: onnx.NodeProto,
    module: str | None,
    signal: float,
    error: float,
    bad: int,
) -> TensorError:
    sqnr = relative = None
    if not bad:
        relative = math.sqrt(error / signal) if signal else 0.0 if not error else None
        if error and signal:
            sqnr = 10 * math.log10(signal / error)
        elif error:
            bad = 1  # something where there is nothing: no ratio says how bad that is
    return TensorError(
        tensor=name,
        node=ours.name,
        op_type=ours.op_type,
        variant_op_type=theirs.op_type,
        module=module,
        sqnr_db=sqnr,
        relative_rms=relative,
        bad=bad,
    )
