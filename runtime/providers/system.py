"""Everything the choice of a provider asks of the machine: the wheel, libraries, devices. Decides nothing (status.py).

`SYSTEM` is the one seam: tests put a machine of their own in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import first_line
from onnxpress.runtime.providers.elf import needed_libraries

CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"
TENSORRT_LIBRARY = "libonnxruntime_providers_tensorrt.so"

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA_VENDOR, _DISPLAY_CLASS = "0x10de", "0x03"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute of the CUDA Driver API
_SILENT, _ERRORS_ONLY = 4, 3  # onnxruntime's severities
# The smallest graph a provider can be tried with: b = a + a, float32 [1], opset 13.
_TINY_GRAPH = bytes.fromhex(
    "08083a350a0e0a01610a016112016222034164641201675a0f0a0161120a0a08080112040a020801620f0a0162120a0a08080112040a0208"
    "0142040a00100d"
)


class DriverError(Exception):
    """The NVIDIA driver offers no device; the text says why, for the end of a sentence."""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """The onnxruntime that is installed."""

    package: str
    version: str
    available: tuple[str, ...]
    """Providers that were built in or stand beside it as libraries, whether they load or not."""
    known: tuple[str, ...]
    """Every provider it has heard of."""
    cuda_version: str | None
    """The CUDA it was built for, such as "13.0"."""
    folder: Path
    """Where its libraries are."""


@dataclasses.dataclass(frozen=True)
class CudaDevice:
    """A GPU as the CUDA driver tells."""

    name: str
    capability: str
    """Compute capability, such as "8.9"."""
    memory_bytes: int


@dataclasses.dataclass(frozen=True)
class CudaDriver:
    """The NVIDIA driver."""

    cuda_version: tuple[int, int]
    """The newest CUDA it runs: major and minor."""
    devices: tuple[CudaDevice, ...]


class System:
    """This machine."""

    @functools.cached_property
    def wheel(self) -> Wheel:
        """The onnxruntime that is installed; this imports it."""
        import onnxruntime

        return Wheel(
            package=str(getattr(onnxruntime, "package_name", "") or "onnxruntime"),
            version=str(onnxruntime.__version__),
            available=tuple(onnxruntime.get_available_providers()),
            known=tuple(onnxruntime.get_all_providers()),
            cuda_version=str(getattr(onnxruntime, "cuda_version", "") or "") or None,
            folder=Path(onnxruntime.__file__).parent / "capi",
        )

    def needed_libraries(self, name: str) -> tuple[str, ...]:
        """Libraries that one of the wheel's own libraries needs, as the file says; empty where it does not tell."""
        return needed_libraries(self.wheel.folder / name)

    def has_library(self, name: str) -> bool:
        """Whether a library is in a package beside onnxruntime or loads from the system's folders."""
        return any((folder / name).is_file() for folder in self._package_folders) or self.loads(name)

    def loads(self, name: str) -> bool:
        """Whether a library loads; it then stays loaded."""
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    def preload(self) -> None:
        """Load CUDA, cuDNN and TensorRT from pip's packages, which lie where the system does not look."""
        import onnxruntime

        with contextlib.redirect_stdout(io.StringIO()):  # what does not load is asked for by name afterwards
            onnxruntime.preload_dlls()
        for name in self.needed_libraries(TENSORRT_LIBRARY):
            for folder in self._package_folders:
                if (folder / name).is_file():
                    self.loads(str(folder / name))

    def cuda_driver(self) -> CudaDriver:
        """The driver and its devices (CUDA Driver API).

        Raises:
            DriverError: there is none, it does not start, or it lists no device.
        """
        try:
            driver = ctypes.CDLL(_DRIVER)
        except OSError:
            raise DriverError(f"the NVIDIA driver ({_DRIVER}) is not installed on this machine") from None
        count, version = ctypes.c_int(0), ctypes.c_int(0)
        if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            if status == _NO_DEVICE:
                raise DriverError(
                    "the NVIDIA driver shows this process no device; is CUDA_VISIBLE_DEVICES set to none?"
                )
            raise DriverError(f"the NVIDIA driver does not start (CUDA error {status})")
        if not count.value:
            raise DriverError("the NVIDIA driver lists no device")
        driver.cuDriverGetVersion(ctypes.byref(version))
        devices = tuple(_device(driver, index) for index in range(count.value))
        return CudaDriver((version.value // 1000, version.value % 1000 // 10), devices)

    def has_nvidia_card(self) -> bool:
        """Whether a GPU of NVIDIA is on the PCI bus, with or without a driver."""
        for device in _PCI.glob("*"):
            with contextlib.suppress(OSError):
                vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
                if vendor.strip() == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
                    return True
        return False

    def tensorrt_version(self) -> str | None:
        """Version of the TensorRT that is loaded or can be, such as "10.16.1"; None without one."""
        needed = self.needed_libraries(TENSORRT_LIBRARY)
        name = next((each for each in needed if each.startswith("libnvinfer.so")), None)
        if name is None or not self.loads(name):
            return None
        number = int(ctypes.CDLL(name).getInferLibVersion())  # since TensorRT 10: major * 10,000 + minor * 100 + patch
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"

    def start_error(self, provider: str) -> str | None:
        """Why onnxruntime does not start a provider, tried with the smallest graph; None when it does."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        onnxruntime.set_default_logger_severity(_SILENT)
        try:
            session = onnxruntime.InferenceSession(
                _TINY_GRAPH,
                options,
                providers=list(dict.fromkeys([provider, "CPUExecutionProvider"])),
                enable_fallback=0,
            )
        # onnxruntime's exception classes have no common base but Exception.
        except Exception as error:  # noqa: BLE001
            return first_line(error)
        finally:
            onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
        return None if session.get_providers()[0] == provider else "onnxruntime leaves it out and does not say why"

    @functools.cached_property
    def _package_folders(self) -> tuple[Path, ...]:
        """Where pip's packages of NVIDIA keep libraries."""
        found = []
        for package, pattern in (("nvidia", "*/lib"), ("tensorrt_libs", ".")):
            spec = importlib.util.find_spec(package)
            for folder in (spec.submodule_search_locations or ()) if spec else ():
                found += sorted(Path(folder).glob(pattern)) if pattern != "." else [Path(folder)]
        return tuple(found)


def _device(driver: Any, index: int) -> CudaDevice:
    handle, number, size = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), handle)
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, handle)
        capability.append(str(number.value))
    return CudaDevice(name.value.decode(errors="replace"), ".".join(capability), size.value)


SYSTEM = System()
"""The machine that is asked."""
