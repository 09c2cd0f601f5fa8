"""A machine for the choice of providers: any wheel, libraries and devices, put in the place of the real one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from onnxpress.runtime.providers import system
from onnxpress.runtime.providers.system import (
    CUDA_LIBRARY,
    TENSORRT_LIBRARY,
    CudaDevice,
    CudaDriver,
    DriverError,
    System,
    Wheel,
)

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
KNOWN = (TENSORRT, CUDA, "MIGraphXExecutionProvider", OPENVINO, "QNNExecutionProvider", "AzureExecutionProvider", CPU)
GPU_WHEEL = (TENSORRT, CUDA, CPU)
L4 = CudaDevice("NVIDIA L4", "8.9", 24_000_000_000)
NO_DRIVER = "the NVIDIA driver (libcuda.so.1) is not installed on this machine"
# What the provider libraries of onnxruntime-gpu 1.31.1 name.
NEEDED = {
    CUDA_LIBRARY: (
        "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13", "libcuda.so.1", "libdl.so.2",
        "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2",
    ),
    TENSORRT_LIBRARY: (
        "libcublas.so.13", "libdl.so.2", "libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13",
        "libcudnn.so.9", "libc.so.6",
    ),
}  # fmt: skip


@dataclasses.dataclass(eq=False)
class FakeMachine(System):
    """By default one with an L4, the GPU wheel and every library."""

    available: tuple[str, ...] = GPU_WHEEL
    package: str = "onnxruntime-gpu"
    cuda: str | None = "13.0"
    devices: tuple[CudaDevice, ...] = (L4,)
    driver_cuda: tuple[int, int] = (13, 0)
    no_driver: str | None = None
    missing: Collection[str] = ()
    card: bool = False
    starts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Why providers do not start."""

    asked_to_start: list[str] = dataclasses.field(default_factory=list)
    preloaded: bool = False

    @property
    def wheel(self) -> Wheel:  # type: ignore[override]
        return Wheel(self.package, "1.31.1", self.available, KNOWN, self.cuda, Path("/nowhere"))

    def needed_libraries(self, name: str) -> tuple[str, ...]:
        return NEEDED[name]

    def has_library(self, name: str) -> bool:
        return name not in self.missing

    def loads(self, name: str) -> bool:
        assert self.preloaded, "packages of pip are loaded first"
        return name not in self.missing

    def preload(self) -> None:
        self.preloaded = True

    def cuda_driver(self) -> CudaDriver:
        if self.no_driver is not None:
            raise DriverError(self.no_driver)
        return CudaDriver(self.driver_cuda, self.devices)

    def has_nvidia_card(self) -> bool:
        return self.card

    def tensorrt_version(self) -> str | None:
        return "10.16.1"

    def start_error(self, provider: str) -> str | None:
        self.asked_to_start.append(provider)
        return self.starts.get(provider)


def without_gpu(**changes: object) -> FakeMachine:
    """The GPU wheel as pip installs it, on a machine without a GPU: seen with onnxruntime-gpu 1.31.1."""
    missing = [*NEEDED[CUDA_LIBRARY][:4], "libnvinfer.so.10", "libnvonnxparser.so.10", "libcudnn.so.9"]
    return FakeMachine(no_driver=NO_DRIVER, devices=(), missing=missing, **changes)  # type: ignore[arg-type]


def install(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> FakeMachine:
    """Put it in the place of the real machine, and let outcomes be logged anew."""
    from onnxpress.runtime.providers import policy

    monkeypatch.setattr(system, "SYSTEM", machine)
    monkeypatch.setattr(policy, "_told", set())
    return machine
