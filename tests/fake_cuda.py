"""libcuda in the memory of the CPU, as `CudaDriver` calls it, and a storage over it that sessions on the CPU can read.

It is stricter than a GPU: fresh memory is full of ones, which are not numbers as floats, every address must lie in an
allocation, and what the default stream is given happens when somebody waits for it.
"""

from __future__ import annotations

# ruff: noqa: N802  # the names are those of libcuda
import ctypes
import threading
from collections.abc import Callable
from typing import Any

import onnxruntime

from onnxpress.runtime.generation.cuda import CudaDriver
from onnxpress.runtime.generation.storage import TOTAL_LENGTH, DeviceStorage

CONTEXT = 4711


class FakeCuda:
    """The functions of libcuda; each gives an error number, 0 for none."""

    def __init__(self, total: int = 2**28, fails: str = "", devices: int = 1) -> None:
        self.total = total
        self.fails = fails
        self.devices = devices
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self._queue: list[Callable[[], Any]] = []
        self._contexts = threading.local()

    @property
    def used(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def cuInit(self, flags: ctypes.c_uint) -> int:
        return 999 if self.fails == "cuInit" else 0

    def cuDeviceGet(self, device: Any, ordinal: ctypes.c_int) -> int:
        device._obj.value = ordinal.value
        return 0 if ordinal.value < self.devices else 101

    def cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> int:
        context._obj.value = CONTEXT
        return 0

    def cuGetErrorName(self, status: ctypes.c_int, name: Any) -> int:
        name._obj.value = {101: b"CUDA_ERROR_INVALID_DEVICE", 700: b"CUDA_ERROR_ILLEGAL_ADDRESS"}.get(status.value)
        return 0

    def cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> int:
        assert context.value == CONTEXT
        self._stack().append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        context._obj.value = self._stack().pop()
        return 0

    def cuMemAlloc_v2(self, address: Any, size: ctypes.c_size_t) -> int:
        self._require_context()
        if self.used + size.value > self.total:
            return 2
        block = (ctypes.c_char * size.value)()
        ctypes.memset(block, 0xFF, size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block
        return 0

    def cuMemFree_v2(self, address: ctypes.c_uint64) -> int:
        self._require_context()
        del self.blocks[address.value]
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        self._require_context()
        free._obj.value, total._obj.value = self.total - self.used, self.total
        return 0

    def cuMemHostAlloc(self, address: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:
        self._require_context()
        block = (ctypes.c_char * size.value)()
        address._obj.value = ctypes.addressof(block)
        self.pinned[ctypes.addressof(block)] = block
        return 0

    def cuMemFreeHost(self, address: ctypes.c_void_p) -> int:
        self._require_context()
        assert address.value is not None
        del self.pinned[address.value]
        return 0

    def cuMemsetD8_v2(self, address: ctypes.c_uint64, value: ctypes.c_ubyte, size: ctypes.c_size_t) -> int:
        self._require(address.value, size.value)
        self._queue.append(lambda: ctypes.memset(address.value, value.value, size.value))
        return 0

    def cuMemcpyHtoD_v2(self, target: ctypes.c_uint64, source: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        self._require(target.value, size.value)
        assert source.value is not None
        staged = ctypes.string_at(source.value, size.value)
        self._queue.append(lambda: ctypes.memmove(target.value, staged, len(staged)))
        return 0

    def cuMemcpyDtoH_v2(self, target: ctypes.c_void_p, source: ctypes.c_uint64, size: ctypes.c_size_t) -> int:
        self._require(source.value, size.value)
        self.cuStreamSynchronize(ctypes.c_void_p(0))
        assert target.value is not None
        ctypes.memmove(target.value, source.value, size.value)
        return 700 if self.fails == "cuMemcpyDtoH_v2" else 0

    def cuMemcpy2DUnaligned_v2(self, described: Any) -> int:
        d = described._obj
        assert (d.srcMemoryType, d.dstMemoryType) == (2, 2)
        assert d.WidthInBytes <= min(d.srcPitch, d.dstPitch)
        source, target, width, pitches = d.srcDevice, d.dstDevice, d.WidthInBytes, (d.srcPitch, d.dstPitch)
        for line in range(d.Height):
            self._require(source + line * pitches[0], width)
            self._require(target + line * pitches[1], width)

        def copy(lines: int = d.Height) -> None:
            for line in range(lines):
                ctypes.memmove(target + line * pitches[1], source + line * pitches[0], width)

        self._queue.append(copy)
        return 0

    def cuStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        self._require_context()
        for work in self._queue:
            work()
        self._queue.clear()
        return 0

    def _require(self, address: int, size: int) -> None:
        self._require_context()
        assert any(start <= address and address + size <= start + len(block) for start, block in self.blocks.items())

    def _require_context(self) -> None:
        assert self._stack() == [CONTEXT]

    def _stack(self) -> list[int]:
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        found: list[int] = self._contexts.stack
        return found


class FakeStorage(DeviceStorage):
    """The device is memory of the CPU, so that kernels of the CPU work on it."""

    types = ("float32", "float16")

    def __init__(self, library: FakeCuda | None = None) -> None:
        self.library = library or FakeCuda()
        super().__init__(CudaDriver(0, self.library), "cpu")

    def inputs(self, session: onnxruntime.InferenceSession) -> frozenset[str]:
        return frozenset(node.name for node in session.get_inputs()) - {TOTAL_LENGTH}
