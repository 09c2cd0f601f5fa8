"""Which onnxruntime execution provider serves a session: a choice that was made explicit wins or fails with the reason.

Names people type (`cpu`, `cuda`, `tensorrt`) stand for onnxruntime's own, which are accepted too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from onnxpress.runtime.errors import ProviderError

SHORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
CPU = SHORT_NAMES["cpu"]
_NVIDIA = (SHORT_NAMES["cuda"], SHORT_NAMES["tensorrt"])


def choose_providers(asked: str | Sequence[str] | None, target: str = "cpu") -> list[str]:
    """Providers for a session, most wanted first; the CPU comes last for operators the others lack.

    Args:
        asked: provider names in order of preference, or None for the variant's target where this machine has it,
            else the CPU.
        target: `cpu`, `cuda` or `tensorrt`, what the variant was made for.

    Raises:
        ProviderError: a provider asked for is unknown or cannot be used here; the text says why.
    """
    if asked is None:
        name = SHORT_NAMES[target]
        return [CPU] if name == CPU or unusable_because(name) else [name, CPU]
    names = [asked] if isinstance(asked, str) else list(asked)
    if not names:
        raise ProviderError("providers is an empty list; give at least one, such as 'cpu', or None to choose by itself")
    chosen = [SHORT_NAMES.get(name.lower(), name) for name in names]
    for name in chosen:
        if reason := unusable_because(name):
            raise ProviderError(f"the provider {name} was asked for but cannot be used: {reason}")
    return chosen if CPU in chosen else [*chosen, CPU]


def require_target(target: str) -> list[str]:
    """Providers for a target that must be usable here.

    Raises:
        ProviderError: it is not; the text says why.
    """
    return choose_providers([target])


def unusable_because(provider: str) -> str | None:
    """Why a provider (onnxruntime's name) cannot be used on this machine, or None when it can."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        known = onnxruntime.get_all_providers()
        if provider not in known:
            return f"onnxruntime knows no provider of this name; it has {', '.join(available)}"
        hint = "; install onnxpress[gpu] instead of onnxpress[cpu]" if provider in _NVIDIA else ""
        return f"the installed onnxruntime {onnxruntime.__version__} was built without it{hint}"
    if provider in _NVIDIA:
        return _no_cuda_device()
    return None


def _no_cuda_device() -> str | None:
    """Why the CUDA driver offers no device (CUDA Driver API: cuInit, cuDeviceGetCount), or None when it does."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver (libcuda.so.1) is not installed on this machine"
    count = ctypes.c_int(0)
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver does not start (CUDA error {status})"
    return None if count.value else "the NVIDIA driver lists no device"
