"""runtime/providers.py: what was asked for is had, or an error says why not."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime
import pytest

from onnxpress.runtime import providers
from onnxpress.runtime.errors import OnnxpressError, ProviderError
from onnxpress.runtime.providers import choose_providers, require_target, unusable_because

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

without_cuda = pytest.mark.skipif(unusable_because(CUDA) is None, reason="this machine has CUDA")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, [CPU]), ("cpu", [CPU]), ("CPU", [CPU]), (CPU, [CPU]), (["cpu"], [CPU]), (("cpu",), [CPU])],
)
def test_the_cpu_goes_by_several_names(asked: str | Sequence[str] | None, expected: list[str]) -> None:
    assert choose_providers(asked) == expected


@pytest.mark.parametrize("asked", ["gpu", "Cpu ", "", ["cpu", "warp"], "cudaexecutionprovider"])
def test_an_unknown_provider_is_named(asked: str | list[str]) -> None:
    with pytest.raises(ProviderError, match=r"was asked for but cannot be used: .* knows no provider .* has .*CPUEx"):
        choose_providers(asked)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ProviderError, match="empty list"):
        choose_providers([])


def test_a_provider_error_is_one_of_ours() -> None:
    assert issubclass(ProviderError, OnnxpressError)


@without_cuda
@pytest.mark.parametrize(
    ("asked", "name"), [("cuda", CUDA), ("tensorrt", TENSORRT), (CUDA, CUDA), (["cuda", "cpu"], CUDA)]
)
def test_what_this_machine_lacks_is_refused_with_the_reason(asked: str | list[str], name: str) -> None:
    with pytest.raises(ProviderError, match=rf"{name} was asked for but cannot be used: \w+"):
        choose_providers(asked)


@without_cuda
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_what_was_not_asked_for_falls_back_to_the_cpu(target: str) -> None:
    assert choose_providers(None, target) == [CPU]
    with pytest.raises(ProviderError):
        require_target(target)
    assert require_target("cpu") == [CPU]


@pytest.fixture
def gpu_wheel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An onnxruntime built with CUDA and TensorRT; whether there is a device is up to the test."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    return monkeypatch


def test_with_a_device_the_target_comes_first_and_the_cpu_last(gpu_wheel: pytest.MonkeyPatch) -> None:
    gpu_wheel.setattr(providers, "_no_cuda_device", lambda: None)
    assert choose_providers(None, "cuda") == [CUDA, CPU]
    assert choose_providers(None, "tensorrt") == [TENSORRT, CPU]
    assert choose_providers(None, "cpu") == [CPU]
    assert choose_providers("cpu", "cuda") == [CPU]
    assert choose_providers(["tensorrt", "cuda"]) == [TENSORRT, CUDA, CPU]
    assert choose_providers(["cuda", "cpu"]) == [CUDA, CPU]
    assert require_target("cuda") == [CUDA, CPU]


def test_a_gpu_wheel_without_a_device_is_refused_or_falls_back(gpu_wheel: pytest.MonkeyPatch) -> None:
    gpu_wheel.setattr(providers, "_no_cuda_device", lambda: "there is no device")
    assert choose_providers(None, "cuda") == [CPU]
    with pytest.raises(ProviderError, match="CUDAExecutionProvider was asked for but cannot be used: there is no dev"):
        choose_providers("cuda")


class FakeDriver:
    """libcuda with the two functions that are asked."""

    def __init__(self, init: int, listed: int, devices: int) -> None:
        self.init, self.listed, self.devices = init, listed, devices

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return self.init

    def cuDeviceGetCount(self, count: object) -> int:  # noqa: N802
        count._obj.value = self.devices  # type: ignore[attr-defined]
        return self.listed


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(0, 0, 2), None),
        (FakeDriver(0, 0, 0), "lists no device"),
        (FakeDriver(100, 0, 0), "does not start .CUDA error 100"),
        (FakeDriver(0, 3, 1), "does not start .CUDA error 3"),
        (None, "libcuda.so.1. is not installed"),
    ],
)
def test_the_driver_is_asked_for_devices(
    gpu_wheel: pytest.MonkeyPatch, driver: FakeDriver | None, expected: str | None
) -> None:
    def open_driver(name: str) -> FakeDriver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError(name)
        return driver

    gpu_wheel.setattr(providers.ctypes, "CDLL", open_driver)
    if expected is None:
        assert unusable_because(CUDA) is None
        assert choose_providers("cuda") == [CUDA, CPU]
    else:
        with pytest.raises(ProviderError, match=expected):
            choose_providers("cuda")


def test_a_wheel_without_cuda_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    for name in ("cuda", "tensorrt"):
        with pytest.raises(ProviderError, match=r"built without it; install onnxpress\[gpu\]"):
            choose_providers(name)
    with pytest.raises(ProviderError, match=r"was built without it$"):
        choose_providers("OpenVINOExecutionProvider")
