"""What bench/gpu.py needs of a machine, each missing thing one line. Nothing is assumed of what is installed."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator

LEAST_CUDA = 13
LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcudnn.so.9")
"""What the CUDA provider of onnxruntime-gpu 1.31 is linked with, and cuDNN, which it loads when needed."""
_LEAST_CAPABILITY = (8, 0)  # bfloat16 and the attention kernels for it
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def missing() -> list[str]:
    """Sentences, in the order in which things must be put right; none where the benchmark can run."""
    return [*_of_the_driver(), *_of_onnxruntime(), *_of_pytorch()]


def _of_the_driver() -> Iterator[str]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield "the NVIDIA driver (libcuda.so.1) is not installed; install one for CUDA 13 (580 or newer)"
        return
    version, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        yield f"the NVIDIA driver does not start (CUDA error {status}); see nvidia-smi"
        return
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < 1000 * LEAST_CUDA:
        yield (
            f"the NVIDIA driver is for CUDA {version.value // 1000}.{version.value % 1000 // 10}; install one for CUDA "
            f"{LEAST_CUDA} (580 or newer)"
        )
    if not count.value:
        yield "the NVIDIA driver lists no device; see nvidia-smi and CUDA_VISIBLE_DEVICES"
        return
    parts = (ctypes.c_int(), ctypes.c_int())
    driver.cuDeviceGet(ctypes.byref(device), 0)
    for part, attribute in zip(parts, (_MAJOR, _MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
    capability = (parts[0].value, parts[1].value)
    if capability < _LEAST_CAPABILITY:
        wanted = ".".join(map(str, _LEAST_CAPABILITY))
        yield f"the GPU has compute capability {capability[0]}.{capability[1]}; {wanted} or more is needed"


def _of_onnxruntime() -> Iterator[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        yield "onnxruntime is not installed; install onnxpress[gpu,export]"
        return
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        yield (
            f"onnxruntime {onnxruntime.__version__} has no CUDA provider; uninstall it and install onnxruntime-gpu "
            "(onnxpress[gpu])"
        )
    elif not str(onnxruntime.cuda_version).startswith(f"{LEAST_CUDA}."):
        yield (
            f"onnxruntime-gpu {onnxruntime.__version__} is built for CUDA {onnxruntime.cuda_version}; install one for "
            f"CUDA {LEAST_CUDA}"
        )
    preload()
    if absent := [name for name in LIBRARIES if not _loads(name)]:
        yield f"{', '.join(absent)}: not found; install CUDA {LEAST_CUDA} and cuDNN 9, or onnxruntime-gpu[cuda,cudnn]"


def _of_pytorch() -> Iterator[str]:
    for name in ("torch", "transformers", "onnx"):
        if importlib.util.find_spec(name) is None:
            yield f"{name} is not installed; install onnxpress[export]"
            return
    import torch

    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        yield f"torch {torch.__version__} ({built}) finds no GPU; install a build of PyTorch for CUDA {LEAST_CUDA}"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def preload() -> None:
    """Load CUDA and cuDNN from pip's packages, where the system does not look; a process does so before its session."""
    import contextlib
    import io

    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # what does not load is asked for by name afterwards
            onnxruntime.preload_dlls()
