"""Names of execution providers: what people type, what onnxruntime calls them, and which package brings them."""

from __future__ import annotations

from onnxpress._onnxruntime import MINIMUM_ONNXRUNTIME

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
AZURE = "AzureExecutionProvider"

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
_LEAST = ">=" + ".".join(map(str, MINIMUM_ONNXRUNTIME))
_PACKAGES = {
    CUDA: "onnxpress[gpu]",
    TENSORRT: "onnxpress[gpu]",
    "MIGraphXExecutionProvider": f"onnxruntime-migraphx{_LEAST}",
    "OpenVINOExecutionProvider": f"onnxruntime-openvino{_LEAST}",
    "DmlExecutionProvider": f"onnxruntime-directml{_LEAST}",
    "CANNExecutionProvider": f"onnxruntime-cann{_LEAST}",
    "WebGpuExecutionProvider": f"onnxruntime-webgpu{_LEAST}",
}
"""Packages that bring the whole of onnxruntime with the provider in it, not add-ons for another one."""


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


def package_of(name: str) -> str | None:
    """What to install for an onnxruntime that has a provider; None where no package of the index is known to."""
    return _PACKAGES.get(name)


def how_to_install(name: str) -> str | None:
    """The same, as a sentence."""
    if (package := package_of(name)) is None:
        return None
    return f"pip uninstall onnxruntime, then pip install {package!r}, brings one that has it"
