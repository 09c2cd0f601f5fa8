"""Names of execution providers: what people type, what onnxruntime calls them, and which package brings them."""

from __future__ import annotations

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
"""The targets of variants."""

ACCELERATORS = (
    CUDA,
    "MIGraphXExecutionProvider",
    "OpenVINOExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "QNNExecutionProvider",
    "CANNExecutionProvider",
    "VitisAIExecutionProvider",
    "WebGpuExecutionProvider",
)
"""Providers that may be chosen without being asked for, the most wanted first. TensorRT is not among them, because it
first builds an engine for minutes; neither are those that bring other kernels for the CPU, or send work elsewhere."""

_SUFFIX = "ExecutionProvider"
_OTHER_SHORT_NAMES = {"directml": "DmlExecutionProvider"}
_NVIDIA_WHEEL = "pip uninstall onnxruntime, then pip install 'onnxpress[gpu]', installs one that has it"
_WHEELS = {
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
    "DmlExecutionProvider": "onnxruntime-directml",
    "CANNExecutionProvider": "onnxruntime-cann",
    "WebGpuExecutionProvider": "onnxruntime-webgpu",
}
"""Packages that hold the whole of onnxruntime with the provider in it, not add-ons for another one."""


def full_name(name: str, known: tuple[str, ...] = ()) -> str:
    """onnxruntime's name of a provider; a name that stands for none comes back as it is.

    Args:
        name: such as `cuda`, `openvino` or `CUDAExecutionProvider`.
        known: every name this onnxruntime has heard of.
    """
    short = {each.removesuffix(_SUFFIX).lower(): each for each in known}
    return (short | _OTHER_SHORT_NAMES | SHORT_NAMES).get(name.lower(), name)


def short_name(name: str) -> str:
    """What a person may type for a provider: `cuda` for `CUDAExecutionProvider`."""
    return name.removesuffix(_SUFFIX).lower()


def how_to_install(name: str) -> str | None:
    """What installs an onnxruntime that has a provider; None where no package of the index is known to."""
    if name in (CUDA, TENSORRT):
        return _NVIDIA_WHEEL
    if (wheel := _WHEELS.get(name)) is not None:
        return f"pip uninstall onnxruntime, then pip install {wheel}, installs one that has it"
    return None
