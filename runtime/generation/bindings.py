"""What a run of a decoder graph reads and writes, bound to the session once for as long as the rows stay the same.

On the CPU the graph works on the very arrays. On a device the cache is read and written where it is too; the small
inputs have a copy there at a fixed address, which is written before each run, and the logits are fetched after it.
Fixed addresses are also what a CUDA graph needs (`Graphs`).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.generation.storage import TOTAL_LENGTH, Buffer, DeviceBuffer, DeviceStorage
from onnxpress.runtime.processes import keep_in_forks
from onnxpress.runtime.providers import CUDA

if TYPE_CHECKING:
    import onnxruntime

    from onnxpress.runtime.generation.cache import KeyValueCache

FloatArray = npt.NDArray[np.float32]

LOGITS = "logits"
LOGIT_INDEX = "logit_index"

_ELEMENTS: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": 16}
"""What IO binding calls them; numpy has no bfloat16, whose number is that of onnx.TensorProto."""
_RUNS_BEFORE_CAPTURE = 16  # of the same rows: a set of rows that decodes for a few steps only is not worth a graph
_MOST_GRAPHS = 32  # each keeps memory of the GPU


class Binding:
    """The arrays a run over certain rows reads and writes, on the CPU. Only a change of S binds anew."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        cache: KeyValueCache,
        first_row: int,
        rows: int,
        logits: FloatArray,
        inputs: set[str],
    ) -> None:
        self.io = session.io_binding()
        keep_in_forks(self.io)
        self.version = cache.version
        self.logits = logits  # [B * P, V]
        self.logit_index = np.zeros((rows, len(logits) // rows), np.int64)
        self.seqlens_k = np.zeros(rows, np.int32)
        self.total_sequence_length = np.zeros(1, np.int32)
        self.input_ids = self.position_ids = np.zeros((rows, 0), np.int64)
        # Python writes single numbers faster through these than into arrays.
        self._last, self._longest = self.seqlens_k.data, self.total_sequence_length.data
        self._ids = self._positions = self._wanted = self._last
        self._session = session
        self._inputs = inputs
        for name in (LOGIT_INDEX, "seqlens_k", TOTAL_LENGTH):
            self._bind_input(name, getattr(self, name))
        for name, buffer in cache.buffers.items():
            self._bind_cache(name, buffer, first_row, rows, cache)
        self._bind_logits(logits.reshape(*self.logit_index.shape, -1))

    def resize(self, tokens: int) -> None:
        """Make room for `tokens` new tokens a row."""
        if self.input_ids.shape[1] != tokens:
            shape = (len(self.seqlens_k), tokens)
            self.input_ids, self.position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            self._bind_input("input_ids", self.input_ids)
            self._bind_input("position_ids", self.position_ids)
            self._ids, self._positions, self._wanted = (
                array.reshape(-1).data for array in (self.input_ids, self.position_ids, self.logit_index)
            )

    def set_step(self, tokens: Sequence[int], past: Sequence[int]) -> None:
        """One new token a row, for which there is room, and how many tokens are before it."""
        for row, (token, position) in enumerate(zip(tokens, past, strict=True)):
            self._ids[row], self._positions[row], self._wanted[row] = token, position, 0

    def set_lengths(self, lengths: Sequence[int]) -> None:
        """The tokens of each row once the new ones are in."""
        for row, length in enumerate(lengths):
            self._last[row] = length - 1
        self._longest[0] = max(lengths)

    def run(self) -> None:
        """Run the graph on what the arrays hold now."""
        self._session.run_with_iobinding(self.io)

    def close(self) -> None:
        """Nothing is run any more."""

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        if name in self._inputs:  # a model without positions, for one, has no input for them
            self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _bind_cache(self, name: str, buffer: Buffer, first_row: int, rows: int, cache: KeyValueCache) -> None:
        part = buffer[first_row : first_row + rows]
        self.io.bind_input(name, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        self.io.bind_output(_present(name), "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)

    def _bind_logits(self, logits: FloatArray) -> None:
        self.io.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)


class DeviceBinding(Binding):
    """The same for a cache on a device."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        cache: KeyValueCache,
        first_row: int,
        rows: int,
        logits: FloatArray,
        inputs: set[str],
        on_device: DeviceBuffer,
        graphs: Graphs | None = None,
        captured: bool = False,
    ) -> None:
        """
        Args:
            session: of the graph.
            cache: in a `DeviceStorage`, with room.
            first_row: of the run.
            rows: of the run.
            logits: where they are fetched to.
            inputs: of the graph.
            on_device: where the graph writes them.
            graphs: of the session, where it captures any.
            captured: capture this binding's runs; it is for decoding steps alone then, and resized once.
        """
        assert isinstance(cache.storage, DeviceStorage)
        self._storage = cache.storage
        self._there = self._storage.inputs(session)
        self._copies: dict[str, tuple[DeviceBuffer, npt.NDArray[Any]]] = {}
        self._fetched_from = on_device
        self._capacity = cache.capacity
        self._graphs = graphs
        self._captured = captured
        self._graph: Capture | None = None
        self._runs = 0
        super().__init__(session, cache, first_row, rows, logits, inputs)

    def run(self) -> None:
        """See `Binding`."""
        if self._graphs is None:
            self._run(None)
            return
        self._runs += 1
        if self._captured and self._graph is None and self._runs > _RUNS_BEFORE_CAPTURE:
            self._graph = self._graphs.new()
        if self._graph is not None:
            # The number is part of what is captured; kernels find the rows' own lengths in seqlens_k.
            self.total_sequence_length[0] = self._capacity
        with self._graphs.lock:
            self._run(self._graphs.options(self._graph))

    def close(self) -> None:
        """See `Binding`."""
        if self._graph is not None and self._graphs is not None:
            self._graphs.release(self._graph)
            self._graph = None

    def _run(self, options: onnxruntime.RunOptions | None) -> None:
        driver = self._storage.driver
        driver.upload([(there.address, array) for there, array in self._copies.values()])
        self._session.run_with_iobinding(self.io, options)
        driver.download(self.logits, self._fetched_from.address)

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        if name not in self._there:
            super()._bind_input(name, array)
        elif name in self._inputs:
            there = self._copies[name][0] if name in self._copies else None
            if there is None or there.nbytes < array.nbytes:
                there = DeviceBuffer(self._storage.driver, (array.size,), array.itemsize)
            self._copies[name] = there, array
            place = (self._storage.device, self._storage.device_id)
            self.io.bind_input(name, *place, array.dtype.type, array.shape, there.address)

    def _bind_cache(self, name: str, buffer: Buffer, first_row: int, rows: int, cache: KeyValueCache) -> None:
        shape = (rows, *buffer.shape[1:])
        address = buffer.address + first_row * buffer.row_bytes
        place = (self._storage.device, self._storage.device_id, _ELEMENTS[cache.layout.dtype], shape, address)
        self.io.bind_input(name, *place)
        self.io.bind_output(_present(name), *place)

    def _bind_logits(self, logits: FloatArray) -> None:
        place = (self._storage.device, self._storage.device_id)
        self.io.bind_output(LOGITS, *place, np.float32, logits.shape, self._fetched_from.address)


class Capture:
    """A decoding step over certain rows that onnxruntime keeps as a CUDA graph."""

    def __init__(self, number: int, options: onnxruntime.RunOptions) -> None:
        self.number = number
        self.options = options


class Graphs:
    """The CUDA graphs of a session: onnxruntime captures a run when its option `gpu_graph_id` is a number it has not
    seen, replays it when it has, and does neither where it is -1.

    While one is captured nothing else may use the session, which `lock` is for.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.lock = threading.Lock()
        self._session = weakref.ref(session)
        self._numbers = itertools.count(1)
        self._live = 0
        self._skip = _options(-1)

    def new(self) -> Capture | None:
        """A number for a binding's runs; None while there are as many as allowed."""
        if self._live >= _MOST_GRAPHS:
            return None
        self._live += 1
        number = next(self._numbers)
        return Capture(number, _options(number))

    def options(self, capture: Capture | None) -> onnxruntime.RunOptions:
        """Of a run; None: it is not captured."""
        return self._skip if capture is None else capture.options

    def release(self, capture: Capture) -> None:
        """Forget what was captured, for the buffers it uses are given back."""
        self._live -= 1
        session = self._session()
        if session is not None and hasattr(session, "release_captured_graph"):  # onnxruntime 1.31
            with self.lock:
                session.release_captured_graph(capture.number)


_GRAPHS: weakref.WeakKeyDictionary[onnxruntime.InferenceSession, Graphs] = weakref.WeakKeyDictionary()


def graphs_of(session: onnxruntime.InferenceSession) -> Graphs | None:
    """What all decoders of a session share where it was made with the option `enable_cuda_graph`, else None."""
    options = session.get_provider_options().get(CUDA, {})
    if options.get("enable_cuda_graph") != "1":
        return None
    return _GRAPHS.setdefault(session, Graphs(session))


def close_all(bindings: Sequence[Binding]) -> None:
    """Close bindings that are given up."""
    for binding in bindings:
        binding.close()


def _options(graph: int) -> onnxruntime.RunOptions:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _present(past: str) -> str:
    """The output that belongs to an input of the cache."""
    return past.replace("past", "present", 1)
