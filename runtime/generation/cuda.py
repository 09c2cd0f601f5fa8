"""The memory of an NVIDIA GPU through the CUDA driver (libcuda), which is there wherever CUDA runs.

Only what a cache needs: allocate, copy, how much is free. Functions and what they wait for are those of the CUDA Driver
API (sections "Memory Management" and "API synchronization behavior"). onnxruntime runs on streams of its own, which do
not wait for the default stream that these copies use. So each call ends when its copies are done; and a run of
onnxruntime ends when its stream is done, so that copies see what it wrote.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import ProviderError
from onnxpress.runtime.generation.storage import Rectangle

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE
_DEFAULT_STREAM = ctypes.c_void_p(0)


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of cuda.h."""

    _fields_ = (
        ("srcXInBytes", ctypes.c_size_t),
        ("srcY", ctypes.c_size_t),
        ("srcMemoryType", ctypes.c_int),
        ("srcHost", ctypes.c_void_p),
        ("srcDevice", ctypes.c_uint64),
        ("srcArray", ctypes.c_void_p),
        ("srcPitch", ctypes.c_size_t),
        ("dstXInBytes", ctypes.c_size_t),
        ("dstY", ctypes.c_size_t),
        ("dstMemoryType", ctypes.c_int),
        ("dstHost", ctypes.c_void_p),
        ("dstDevice", ctypes.c_uint64),
        ("dstArray", ctypes.c_void_p),
        ("dstPitch", ctypes.c_size_t),
        ("WidthInBytes", ctypes.c_size_t),
        ("Height", ctypes.c_size_t),
    )


class CudaDriver:
    """See `Driver` in storage.py. Its context is the one that onnxruntime and PyTorch use too (the primary context)."""

    def __init__(self, device_id: int, library: Any = None) -> None:
        """
        Args:
            device_id: as CUDA counts the visible devices.
            library: libcuda; None to load it.

        Raises:
            ProviderError: there is no driver, or no such device.
        """
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1") if library is None else library
        except OSError as error:
            raise ProviderError("the NVIDIA driver (libcuda.so.1) is not installed on this machine") from error
        self._check("cuInit", ctypes.c_uint(0))
        device = ctypes.c_int()
        self._check("cuDeviceGet", ctypes.byref(device), ctypes.c_int(device_id))
        self._context = ctypes.c_void_p()
        self._check("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def allocate(self, size: int) -> int:
        """See `Driver`."""
        address = ctypes.c_uint64()
        with self._current():
            self._check("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """See `Driver`. An error here, such as a driver that has shut down already, changes nothing for anybody."""
        with contextlib.suppress(ProviderError), self._current():
            self._check("cuMemFree_v2", ctypes.c_uint64(address))

    def clear(self, address: int, size: int) -> None:
        """See `Driver`."""
        with self._current():
            self._check("cuMemsetD8_v2", ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size))
            self._check("cuStreamSynchronize", _DEFAULT_STREAM)

    def upload(self, arrays: Sequence[tuple[int, npt.NDArray[Any]]]) -> None:
        """See `Driver`."""
        with self._current():
            for address, array in arrays:
                self._check(
                    "cuMemcpyHtoD_v2",
                    ctypes.c_uint64(address),
                    ctypes.c_void_p(array.ctypes.data),
                    ctypes.c_size_t(array.nbytes),
                )
            self._check("cuStreamSynchronize", _DEFAULT_STREAM)

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """See `Driver`."""
        with self._current():
            self._check(
                "cuMemcpyDtoH_v2",
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_uint64(address),
                ctypes.c_size_t(array.nbytes),
            )

    def copy(self, parts: Sequence[Rectangle]) -> None:
        """See `Driver`."""
        with self._current():
            for part in parts:
                if not part.width or not part.height:
                    continue
                described = _Copy2D(
                    srcMemoryType=_DEVICE_MEMORY,
                    srcDevice=part.source,
                    srcPitch=part.source_pitch,
                    dstMemoryType=_DEVICE_MEMORY,
                    dstDevice=part.target,
                    dstPitch=part.target_pitch,
                    WidthInBytes=part.width,
                    Height=part.height,
                )
                # The other one may refuse pitches that cuMemAllocPitch did not choose.
                self._check("cuMemcpy2DUnaligned_v2", ctypes.byref(described))
            self._check("cuStreamSynchronize", _DEFAULT_STREAM)

    def host_array(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """See `Driver`. In memory whose pages stay where they are, which the device can copy to by itself."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        address = ctypes.c_void_p()
        with self._current():
            self._check("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(0))
        assert address.value is not None
        block: Any = (ctypes.c_char * size).from_address(address.value)
        weakref.finalize(block, self._free_host, address.value)  # arrays over it keep it
        array: npt.NDArray[Any] = np.frombuffer(block, dtype).reshape(shape)
        return array

    def free_bytes(self) -> int:
        """See `Driver`."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self._current():
            self._check("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def _free_host(self, address: int) -> None:
        with contextlib.suppress(ProviderError), self._current():
            self._check("cuMemFreeHost", ctypes.c_void_p(address))

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Make the context that of the calling thread, and put back the one it had."""
        self._check("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _check(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"{function}: the GPU has not that much free memory")
        if status:
            raise ProviderError(f"the CUDA driver failed: {function} gave error {status} ({self._name(status)})")

    def _name(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._cuda.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text))
        return (text.value or b"unknown").decode()


@functools.cache
def cuda_driver(device_id: int) -> CudaDriver:
    """The driver of a device, whose context this process keeps."""
    return CudaDriver(device_id)
