"""Whether a provider can be used on this machine, and if not, why and what to do about it. Asks system.py."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from onnxpress.runtime.providers import system
from onnxpress.runtime.providers.names import ACCELERATORS, AZURE, CPU, CUDA, TENSORRT, how_to_install
from onnxpress.runtime.providers.system import (
    CUDA_LIBRARY,
    TENSORRT_LIBRARY,
    CudaDriver,
    DriverError,
    System,
)

_CUDNN = "libcudnn.so.9"  # the CUDA provider opens it by name when something needs it (seen in 1.28 and 1.31)
_NOT_OF_CUDA = ("libcuda.", "libc.", "libm.", "libdl.", "librt.", "libpthread.", "libstdc++.", "libgcc_s.", "ld-")
_OF_TENSORRT = ("libnvinfer.", "libnvonnxparser.")


@dataclasses.dataclass(frozen=True)
class ProviderStatus:
    """What is known of a provider on this machine."""

    name: str
    """onnxruntime's."""
    in_wheel: bool
    """Whether the installed onnxruntime has it, loadable or not."""
    reason: str | None = None
    """Why it cannot be used; None: it can."""
    remedy: str | None = None
    """What to do about that."""
    devices: tuple[str, ...] = ()
    """What it would run on, where that can be asked."""
    notes: tuple[str, ...] = ()
    """What is missing for a part of it only."""

    @property
    def usable(self) -> bool:
        """Whether it can be used."""
        return self.reason is None

    @property
    def sentence(self) -> str | None:
        """Reason and remedy."""
        return self.reason if self.remedy is None else f"{self.reason}; {self.remedy}"


def status_of(name: str, *, start: bool = False) -> ProviderStatus:
    """Ask this machine about a provider. Answers are kept for the process.

    Args:
        name: onnxruntime's.
        start: also start it with the smallest graph, which takes about a second on a GPU and is the only way to learn
            whether a provider of which nothing else can be asked has a device.
    """
    found = _status(name, system.SYSTEM)
    if not start or not found.usable or name == CPU:
        return found
    reason = _start_error(name, system.SYSTEM)
    return found if reason is None else dataclasses.replace(found, reason=f"it does not start: {reason}")


def unusable_because(name: str) -> str | None:
    """Why a provider (onnxruntime's name) cannot be used on this machine and what to do, or None when it can."""
    return status_of(name).sentence


def accelerators() -> tuple[str, ...]:
    """Providers of the wheel that may be chosen without being asked for, the most wanted first."""
    return tuple(name for name in ACCELERATORS if name in system.SYSTEM.wheel.available)


@functools.cache
def _start_error(name: str, machine: System) -> str | None:
    return machine.start_error(name)


@functools.cache
def _status(name: str, machine: System) -> ProviderStatus:
    wheel = machine.wheel
    if name not in wheel.available:
        if name not in wheel.known:
            there = ", ".join(wheel.available)
            return ProviderStatus(name, False, f"onnxruntime knows no provider of this name; it has {there}")
        reason = f"the installed {wheel.package} {wheel.version} was built without it"
        return ProviderStatus(name, False, reason, how_to_install(name))
    if name == AZURE:
        return ProviderStatus(name, True, notes=("sends work to an endpoint elsewhere; never chosen by itself",))
    if name in (CUDA, TENSORRT):
        return _nvidia(name, machine)
    return ProviderStatus(name, True)


def _nvidia(name: str, machine: System) -> ProviderStatus:
    """A driver with a device, new enough for the wheel's CUDA, and the libraries that the provider's file names."""
    built_for = machine.wheel.cuda_version
    problems: dict[str, str] = {}  # each with what to do about it
    driver = None
    try:
        driver = machine.cuda_driver()
        machine.preload()
        if _is_too_old(driver, built_for):
            newest = ".".join(map(str, driver.cuda_version))
            problems[f"the NVIDIA driver runs CUDA up to {newest}, this onnxruntime was built for CUDA {built_for}"] = (
                "install a newer driver"
            )
    except DriverError as error:
        problems[str(error)] = _about_the_driver(machine)
    # Without a driver nothing is loaded that may be gigabytes; that a file is there says enough.
    is_there = machine.has_library if driver is None else machine.loads
    if missing := [library for library in _needed(name, machine) if not is_there(library)]:
        problems[f"{_listed(missing)} {'are' if len(missing) > 1 else 'is'} missing"] = _packages(missing, built_for)
    devices = tuple(f"{each.name}, compute capability {each.capability}" for each in driver.devices) if driver else ()
    if problems:
        return ProviderStatus(name, True, ", and ".join(problems), ", and ".join(problems.values()), devices)
    notes: tuple[str, ...] = ()
    if name == CUDA and not machine.loads(_CUDNN):
        notes = (f"no {_CUDNN}: convolutions and attention by cuDNN do not run; {_packages([_CUDNN], built_for)}",)
    return ProviderStatus(name, True, devices=devices, notes=notes)


def _needed(name: str, machine: System) -> tuple[str, ...]:
    """Libraries of NVIDIA, in the order in which they are needed; TensorRT's provider stands on that of CUDA."""
    needed = machine.needed_libraries(CUDA_LIBRARY)
    if name == TENSORRT:
        needed = tuple(dict.fromkeys((*needed, *machine.needed_libraries(TENSORRT_LIBRARY))))
    return tuple(library for library in needed if not library.startswith(_NOT_OF_CUDA))


def _about_the_driver(machine: System) -> str:
    if machine.has_nvidia_card():
        return "a GPU of NVIDIA is in this machine: install its driver, or let the container see it (--gpus all)"
    return "this machine seems to have no GPU of NVIDIA"


def _is_too_old(driver: CudaDriver, built_for: str | None) -> bool:
    """A driver runs programs of its own major version of CUDA and of older ones (NVIDIA, "CUDA Compatibility")."""
    return built_for is not None and driver.cuda_version[0] < int(built_for.split(".")[0])


def _packages(missing: Sequence[str], built_for: str | None) -> str:
    """What to install for libraries, as pip's packages."""
    major = built_for.split(".")[0] if built_for else "13"
    tensorrt = [library for library in missing if library.startswith(_OF_TENSORRT)]
    others = [library for library in missing if library not in tensorrt]
    packages = []
    if others:
        only_cudnn = all(library.startswith("libcudnn") for library in others)
        packages.append(f"nvidia-cudnn-cu{major}" if only_cudnn else "'onnxruntime-gpu[cuda,cudnn]'")
    if tensorrt:
        packages.append(f"'tensorrt-cu{major}-libs=={tensorrt[0].rpartition('.')[2]}.*'")
    return f"pip install {' '.join(packages)} brings {'the libraries' if len(missing) > 1 else 'it'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
