"""Token sequences to a graph's outputs, row by row: padded, cut into batches, run side by side, put back in order.

Knows nothing of texts and tasks, nor of what computes: onnxruntime (`SessionGraph`) when serving, PyTorch when the two
are compared (`exporter/baseline.py`), over the same tokens.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.arenas import rest, smallest_feeds
from onnxpress.runtime.batching import SideBySide, plan_batches, tokens_per_batch
from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.interface import check_interface, check_outputs
from onnxpress.runtime.manifest import Tensor, TokenizerSettings, Variant
from onnxpress.runtime.providers import CPU, Placement, Provider
from onnxpress.runtime.providers.placement import placement_of
from onnxpress.runtime.session import inference_error, make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.shared_weights import model_to_open
from onnxpress.runtime.token_sequences import Encoded

if TYPE_CHECKING:
    import onnxruntime

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Feeds = dict[str, IntArray]


class Graph(Protocol):
    """What computes a batch."""

    @property
    def workers(self) -> int:
        """How many batches may be computed at once."""

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of sequences of these lengths, grouped into batches."""

    def run(self, feeds: Feeds, alone: bool) -> list[FloatArray]:
        """Outputs for a batch; `alone`: no other batch of the same call runs beside it."""


class SessionGraph:
    """A bundle's variant in onnxruntime."""

    def __init__(
        self, bundle: Bundle, variant: Variant, providers: Sequence[Provider], settings: ServingSettings
    ) -> None:
        # Sessions may be opened later, when the process is in another folder.
        self.bundle = dataclasses.replace(bundle, folder=bundle.folder.absolute())
        self.variant = variant
        self.providers = tuple(provider.name for provider in providers)
        self.settings = settings
        self.threads = settings.thread_count
        self.workers = self.threads if self.providers[0] == CPU and settings.sessions == "two" else 1
        self._chosen = tuple(providers)
        self._most_rows = providers[0].most_rows
        self._outputs = [tensor.name for tensor in bundle.manifest.outputs]
        self._tensors = bundle.manifest.outputs
        self._path = self._find()
        self._lock = threading.Lock()
        # A single session has all threads for each run, so runs beside it would only take more memory.
        self._in_turn: AbstractContextManager[Any] = nullcontext() if settings.sessions == "two" else threading.Lock()
        # One text is fastest with all threads on each operator; many batches are fastest with one thread each.
        self._wide = self._open(self.threads)
        check_interface(self._wide, bundle.manifest.inputs, self._tensors, variant.model)
        self._narrow: onnxruntime.InferenceSession | None = self._wide if self.workers == 1 else None
        if settings.warm_up:
            for session in (self._wide, self._narrow_session()):
                session.run(self._outputs, smallest_feeds(session))

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches of a bounded number of tokens, as many as keep all workers busy."""
        batches = plan_batches(lengths, tokens_per_batch(lengths, self.workers, self.settings.tokens_per_batch))
        if (most := self._most_rows) is None:
            return batches
        return [batch[start : start + most] for batch in batches for start in range(0, len(batch), most)]

    def run(self, feeds: Feeds, alone: bool) -> list[FloatArray]:
        """Outputs in the manifest's order."""
        session = self._wide if alone else self._narrow_session()
        try:
            with self._in_turn:
                outputs: list[FloatArray] = session.run(self._outputs, feeds)
        except Exception as error:
            raise inference_error(error) from error
        batch, sequence = feeds["input_ids"].shape
        check_outputs(outputs, self._tensors, {"batch": batch, "sequence": sequence})
        return outputs

    def placement(self) -> Placement:
        """Which provider each node runs on."""
        return placement_of(self._wide, self.variant.name)

    def rest(self) -> None:
        """End the threads that wait to give memory back."""
        for session in (self._wide, self._narrow):
            if session is not None:
                rest(session)

    def _open(self, threads: int) -> onnxruntime.InferenceSession:
        settings = self.settings.with_threads(threads)
        if not self._path.is_file():  # a copy of the weights may have been removed meanwhile
            self._path = self._find()
        return make_session(self._path, self.variant.session, settings=settings, providers=self._chosen)

    def _find(self) -> Path:
        return model_to_open(self.bundle, self.variant, self.settings, on_cpu=self.providers[0] == CPU)

    def _narrow_session(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._narrow is None:
                self.bundle.check_unchanged()
                self._narrow = self._open(threads=1)
            return self._narrow


class Encoder:
    """Runs encodings through a graph. Safe to call from many threads."""

    def __init__(
        self, graph: Graph, settings: TokenizerSettings, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        """
        Args:
            graph: what computes.
            settings: how to pad.
            inputs: of the graph, each int64 [batch, `sequence` or another axis].
            outputs: of the graph, float32 [batch, ...].
        """
        self.graph = graph
        self._settings = settings
        self._axis_of = {tensor.name: tensor.shape[1] for tensor in inputs}
        self._outputs = tuple((tensor.name, tensor.shape[1]) for tensor in outputs)
        self._workers = SideBySide(graph.workers)

    @property
    def input_names(self) -> frozenset[str]:
        """Names of the graph's inputs."""
        return frozenset(self._axis_of)

    def run(
        self,
        encodings: Sequence[Encoded],
        extra: Mapping[str, Sequence[Sequence[int]]] | None = None,
    ) -> list[dict[str, FloatArray]]:
        """The graph's outputs for each encoding, in order, without what belongs to padding.

        Args:
            encodings: of at least no token each.
            extra: further inputs by name, one row an encoding. A row for an input [batch, sequence] has a value for
                each token; a row for an input with another second axis holds positions of tokens.

        Returns:
            by name: float32 [...] without the batch axis; an axis `sequence` is as long as the encoding, the axis of a
            further input as long as that input's row.

        Raises:
            ForkError: called in another process than the one that loaded the model.
        """
        self._workers.home.check()
        if not encodings:
            return []
        further = extra or {}
        batches = self.graph.plan([len(encoding) for encoding in encodings])

        def run(batch: list[int]) -> list[dict[str, FloatArray]]:
            rows = {name: [values[index] for index in batch] for name, values in further.items()}
            return self.run_batch([encodings[index] for index in batch], rows, alone=len(batches) == 1)

        results: list[dict[str, FloatArray]] = [{} for _ in encodings]
        for batch, found in zip(batches, self._workers.map(run, batches), strict=True):
            for index, row in zip(batch, found, strict=True):
                results[index] = row
        return results

    def run_batch(
        self, encodings: Sequence[Encoded], extra: Mapping[str, Sequence[Sequence[int]]], *, alone: bool
    ) -> list[dict[str, FloatArray]]:
        """The same for encodings that go through the graph together, in this thread.

        Args:
            encodings: at least one, padded to the longest.
            extra: as of `run`.
            alone: no other batch runs beside it, so it may have all threads.
        """
        outputs = self.graph.run(pad(encodings, extra, self._axis_of, self._settings), alone)
        results = []
        for position, encoding in enumerate(encodings):
            sizes = {self._axis_of[name]: len(values[position]) for name, values in extra.items()}
            sizes["sequence"] = len(encoding)
            results.append(
                {
                    name: self._without_padding(output[position], axis, sizes)
                    for (name, axis), output in zip(self._outputs, outputs, strict=True)
                }
            )
        return results

    def check_process(self) -> None:
        """
        Raises:
            ForkError: this is not the process the model was loaded in.
        """
        self._workers.home.check()

    def close(self) -> None:
        """End the worker threads; they are started anew when needed."""
        self._workers.close()

    def _without_padding(self, row: FloatArray, axis: str, sizes: Mapping[str, int]) -> FloatArray:
        if axis not in sizes:
            return row
        if axis == "sequence" and self._settings.padding_side == "left":
            return row[len(row) - sizes[axis] :]
        return row[: sizes[axis]]


def pad(
    encodings: Sequence[Encoded],
    further: Mapping[str, Sequence[Sequence[int]]],
    axis_of: Mapping[str, str],
    settings: TokenizerSettings,
) -> Feeds:
    """Graph inputs for a batch, each [batch, longest]; `further` ones as `Encoder.run` has them.

    Args:
        encodings: the batch, at least one.
        further: inputs by name beside the usual three.
        axis_of: second axis of each of the graph's inputs.
        settings: how to pad.
    """
    lengths = [len(encoding) for encoding in encodings]
    shape = (len(encodings), max(1, *lengths))
    fill = {"input_ids": settings.pad_id, "token_type_ids": settings.pad_type_id}
    feeds = {name: np.full(shape, fill.get(name, 0), np.int64) for name, axis in axis_of.items() if axis == "sequence"}
    starts = [shape[1] - length if settings.padding_side == "left" else 0 for length in lengths]
    for row, (encoding, start, length) in enumerate(zip(encodings, starts, lengths, strict=True)):
        span = slice(start, start + length)
        feeds["input_ids"][row, span] = encoding.ids
        feeds["attention_mask"][row, span] = 1
        if "token_type_ids" in feeds:
            feeds["token_type_ids"][row, span] = encoding.type_ids
        for name, values in further.items():
            if axis_of[name] == "sequence":
                feeds[name][row, span] = values[row]
    for name, values in further.items():
        if axis_of[name] != "sequence":
            feeds[name] = _positions(values, starts)
    return feeds


def _positions(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> IntArray:
    """Positions of tokens in padded rows: [batch, most positions of a row]; what is left over points at token 0."""
    positions = np.zeros((len(rows), max(1, *map(len, rows))), np.int64)
    for row, (values, start) in enumerate(zip(rows, starts, strict=True)):
        positions[row, : len(values)] = np.asarray(values, np.int64) + start
    return positions
