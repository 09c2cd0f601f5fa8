"""runtime/providers/system.py, elf.py: what the machine is asked, and libraries read as files."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxpress.runtime.providers import system
from onnxpress.runtime.providers.elf import needed_libraries
from onnxpress.runtime.providers.system import CudaDevice, CudaDriver, DriverError, System


class FakeDriver:
    """libcuda with the functions that are asked."""

    def __init__(self, init: int, listed: int, devices: int) -> None:
        self.init, self.listed, self.devices = init, listed, devices

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.devices
        return self.listed

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = 24 * 2**30
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:  # noqa: N802
        number._obj.value = {75: 8, 76: 9}[attribute]
        return 0


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver | None) -> None:
    def open_library(name: str) -> FakeDriver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError(name)
        return driver

    monkeypatch.setattr(system.ctypes, "CDLL", open_library)


def test_the_driver_lists_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, FakeDriver(0, 0, 2))
    devices = tuple(CudaDevice(f"GPU {index}", "8.9", 24 * 2**30) for index in range(2))
    assert System().cuda_driver() == CudaDriver((12, 8), devices)


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (FakeDriver(0, 0, 0), "lists no device"),
        (FakeDriver(100, 0, 0), r"shows this process no device; is CUDA_VISIBLE_DEVICES set to none\?"),
        (FakeDriver(999, 0, 0), r"does not start \(CUDA error 999\)"),
        (FakeDriver(0, 3, 1), r"does not start \(CUDA error 3\)"),
        (None, r"libcuda.so.1\) is not installed"),
    ],
)
def test_a_driver_without_devices_says_why(
    monkeypatch: pytest.MonkeyPatch, driver: FakeDriver | None, sentence: str
) -> None:
    with_driver(monkeypatch, driver)
    with pytest.raises(DriverError, match=sentence):
        System().cuda_driver()


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x1002", "0x030000", False)],
)
def test_a_card_is_found_without_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, kind: str, expected: bool
) -> None:
    (tmp_path / "0000:00:1e.0").mkdir()
    (tmp_path / "0000:00:1e.0" / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "0000:00:1e.0" / "class").write_text(f"{kind}\n")
    (tmp_path / "0000:00:1f.0").mkdir()  # a device that tells nothing
    monkeypatch.setattr(system, "_PCI", tmp_path)
    assert System().has_nvidia_card() is expected


def test_the_wheel_that_is_installed() -> None:
    wheel = System().wheel
    assert wheel.folder.is_dir()
    assert set(wheel.available) <= set(wheel.known)
    assert "CPUExecutionProvider" in wheel.available


def test_providers_are_tried_with_a_graph() -> None:
    assert System().start_error("CPUExecutionProvider") is None


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")
def test_a_provider_that_does_not_start_is_told() -> None:
    if "CUDAExecutionProvider" in System().wheel.available:
        pytest.skip("this wheel has CUDA")
    assert System().start_error("CUDAExecutionProvider") == "onnxruntime leaves it out and does not say why"


def test_libraries_load_or_do_not() -> None:
    assert System().loads("libc.so.6") == (shutil.which("ldd") is not None)
    assert not System().loads("libno-such-library.so.1")
    assert not System().has_library("libno-such-library.so.1")


# --- the file of a library ---


def real_library() -> Path:
    return next(Path(np.__file__).parent.rglob("*_multiarray_umath*.so"))


def test_needed_libraries_are_those_that_readelf_lists() -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    library = real_library()
    listed = subprocess.run([readelf, "-dW", library], capture_output=True, text=True, check=True).stdout
    expected = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
    assert expected
    assert list(needed_libraries(library)) == expected


def test_what_is_no_library_needs_nothing(tmp_path: Path) -> None:
    content = real_library().read_bytes()
    cases = {
        "empty": b"",
        "text": b"not a library",
        "header": content[:64],
        "cut": content[:2000],
        "far": content[:32] + struct.pack("<Q", 2**62) + content[40:64],
        "of 32 bits": b"\x7fELF\x01\x01" + bytes(100),
    }
    for name, data in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert needed_libraries(path) == (), name
    assert needed_libraries(tmp_path / "nowhere") == ()
