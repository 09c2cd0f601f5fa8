"""Where keys and values lie: in the memory of the CPU, or in that of a device.

A buffer is [rows, kv_heads, capacity, head_dim]. The cache allocates buffers and moves tokens between their rows; a run
reads and writes them where they are, by their addresses. In the memory of the CPU a buffer is a numpy array. That of a
device is reached through its driver alone (cuda.py), so no library beyond onnxruntime's own is needed, and the logic
can be tested with a driver whose device is memory of the CPU.
"""

from __future__ import annotations

import abc
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.providers import CUDA

if TYPE_CHECKING:
    import onnxruntime

Buffer = Any
"""[rows, kv_heads, capacity, head_dim]: a numpy array, or a `DeviceBuffer`."""
CacheType = Literal["float32", "float16", "bfloat16"]

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TOTAL_LENGTH = "total_sequence_length"
"""The one input of a decoder graph that kernels read in the memory of the CPU, on a device too."""


class Storage(abc.ABC):
    """A kind of memory that holds keys and values. One thread uses it at a time."""

    device: str
    """As onnxruntime's IO binding names it."""
    device_id: int = 0
    owner: ClassVar[str]
    """Whose memory it is, for people."""
    types: ClassVar[tuple[str, ...]]
    """Of caches that attention kernels take there."""

    @abc.abstractmethod
    def zeros(self, shape: tuple[int, int, int, int], dtype: CacheType) -> Buffer:
        """A new buffer.

        Raises:
            MemoryError: there is not that much memory.
        """

    @abc.abstractmethod
    def copy(self, target: Buffer, row: int, source: Buffer, source_row: int, length: int) -> None:
        """Make a row of `target` begin with the first `length` tokens of a row of `source`, another buffer whose
        capacity may differ."""

    @abc.abstractmethod
    def move(self, buffer: Buffer, rows: Sequence[int], sources: Sequence[int], start: int, stop: int) -> None:
        """Make `rows`, all at once, hold the tokens from `start` to `stop` that `sources` hold."""

    @abc.abstractmethod
    def free_bytes(self) -> int:
        """What this process could still allocate."""


class HostStorage(Storage):
    """The memory of the CPU. Pages that were never written to cost address space only, where the system hands them out
    when touched."""

    device = "cpu"
    owner = "system"
    types = ("float32", "float16")

    def zeros(self, shape: tuple[int, int, int, int], dtype: CacheType) -> Buffer:
        """See `Storage`."""
        return np.zeros(shape, dtype)

    def copy(self, target: Buffer, row: int, source: Buffer, source_row: int, length: int) -> None:
        """See `Storage`."""
        target[row, :, :length] = source[source_row, :, :length]

    def move(self, buffer: Buffer, rows: Sequence[int], sources: Sequence[int], start: int, stop: int) -> None:
        """See `Storage`."""
        if len(rows) == 1:  # without the copy that indexing by a list makes
            buffer[rows[0], :, start:stop] = buffer[sources[0], :, start:stop]
        else:
            buffer[list(rows), :, start:stop] = buffer[list(sources), :, start:stop]

    def free_bytes(self) -> int:
        """See `Storage`."""
        return free_memory_bytes()


class Driver(Protocol):
    """What a device must do. Addresses and sizes are in bytes. Copies are done when a call returns, so that a run on
    any stream of the device sees them."""

    def allocate(self, size: int) -> int:
        """The address of new memory.

        Raises:
            MemoryError: the device has not that much.
        """

    def free(self, address: int) -> None:
        """Give memory back; never fails."""

    def clear(self, address: int, size: int) -> None:
        """Set to zero."""

    def upload(self, arrays: Sequence[tuple[int, npt.NDArray[Any]]]) -> None:
        """Copy contiguous arrays from the CPU to addresses."""

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Fill a contiguous array from an address."""

    def copy(self, parts: Sequence[Rectangle]) -> None:
        """Copy within the device, one part after the other."""

    def host_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """An array on the CPU that `download` fills fastest."""

    def free_bytes(self) -> int:
        """What could still be allocated."""


class Rectangle:
    """`height` lines of `width` bytes, which begin `target_pitch` and `source_pitch` bytes apart."""

    __slots__ = ("height", "source", "source_pitch", "target", "target_pitch", "width")

    def __init__(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        self.target, self.target_pitch = target, target_pitch
        self.source, self.source_pitch = source, source_pitch
        self.width, self.height = width, height


class DeviceBuffer:
    """Memory of a device, given back when nobody refers to it any more."""

    def __init__(self, driver: Driver, shape: tuple[int, ...], item_bytes: int) -> None:
        """
        Raises:
            MemoryError: the device has not that much memory.
        """
        self.shape = shape
        self.item_bytes = item_bytes
        self.nbytes = math.prod(shape) * item_bytes
        self.address = driver.allocate(max(1, self.nbytes))
        weakref.finalize(self, driver.free, self.address)

    @property
    def row_bytes(self) -> int:
        """Of an index of the first axis."""
        return self.nbytes // self.shape[0]


class DeviceStorage(Storage):
    """The memory of a device, through its driver."""

    owner = "GPU"
    types = ("float16", "bfloat16")  # of onnxruntime's GroupQueryAttention on CUDA (docs/gpu.md)

    def __init__(self, driver: Driver, device: str, device_id: int = 0) -> None:
        """
        Args:
            driver: of the device.
            device: as onnxruntime's IO binding names it.
            device_id: which of them.
        """
        self.driver = driver
        self.device = device
        self.device_id = device_id

    def zeros(self, shape: tuple[int, int, int, int], dtype: CacheType) -> DeviceBuffer:
        """See `Storage`. Zeros, because a kernel may read behind a row's tokens what it weights with zero, and zero
        times infinity is not zero."""
        buffer = DeviceBuffer(self.driver, shape, ITEM_BYTES[dtype])
        self.driver.clear(buffer.address, buffer.nbytes)
        return buffer

    def copy(self, target: DeviceBuffer, row: int, source: DeviceBuffer, source_row: int, length: int) -> None:
        """See `Storage`."""
        self.driver.copy([_part(target, row, 0, source, source_row, 0, length)])

    def move(self, buffer: DeviceBuffer, rows: Sequence[int], sources: Sequence[int], start: int, stop: int) -> None:
        """See `Storage`."""
        if not set(rows) & set(sources):
            self.driver.copy(
                [_part(buffer, a, start, buffer, b, start, stop - start) for a, b in zip(rows, sources, strict=True)]
            )
            return
        _, heads, _, size = buffer.shape
        held = DeviceBuffer(self.driver, (len(rows), heads, stop - start, size), buffer.item_bytes)
        self.driver.copy(
            [_part(held, place, 0, buffer, source, start, stop - start) for place, source in enumerate(sources)]
            + [_part(buffer, row, start, held, place, 0, stop - start) for place, row in enumerate(rows)]
        )

    def free_bytes(self) -> int:
        """See `Storage`."""
        return self.driver.free_bytes()

    def inputs(self, session: onnxruntime.InferenceSession) -> frozenset[str]:
        """Inputs of a graph that its kernels read in the memory of the device. onnxruntime copies an input that is
        bound elsewhere only once, when it is bound, so those must lie there, and no others."""
        infos = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
        return frozenset(node.name for node, info in infos if info.name != "Cpu" and "Pinned" not in info.name)


HOST = HostStorage()


def storage_of(session: onnxruntime.InferenceSession) -> Storage:
    """Where a session's keys and values belong.

    Raises:
        ProviderError: the CUDA driver does not serve the session's device.
    """
    if session.get_providers()[0] != CUDA:
        return HOST
    from onnxpress.runtime.generation.cuda import cuda_driver

    device_id = int(session.get_provider_options().get(CUDA, {}).get("device_id", 0))
    return DeviceStorage(cuda_driver(device_id), "cuda", device_id)


def free_memory_bytes() -> int:
    """Memory that this process could still get: what the system has available, within the limit of its container."""
    available = describe_machine().memory_bytes
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # not Linux, or no limit of a container
        pass
    return max(0, available)


def _part(
    target: DeviceBuffer, row: int, to: int, source: DeviceBuffer, source_row: int, start: int, tokens: int
) -> Rectangle:
    """`tokens` tokens from `start` on of a source's row, to a target's row from the token `to` on: a line a head."""
    _, heads, capacity, size = target.shape
    token = size * target.item_bytes
    return Rectangle(
        target.address + row * target.row_bytes + to * token,
        capacity * token,
        source.address + source_row * source.row_bytes + start * token,
        source.shape[2] * token,
        tokens * token,
        heads,
    )
