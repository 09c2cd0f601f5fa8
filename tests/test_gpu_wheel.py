"""onnxruntime's GPU wheel on a machine without a GPU: one line, reasons, and the names of options in its libraries.
`python -m bench.gpu_wheel` makes the environment that this needs."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from bench.gpu_wheel import check
from onnxpress.runtime.providers import CudaOptions, Provider, TensorrtOptions
from onnxpress.runtime.providers.system import CUDA_LIBRARY, TENSORRT_LIBRARY
from tests.fake_machine import FakeMachine, install
from tests.test_provider_options import graph

PYTHON = os.environ.get("ONNXPRESS_GPU_WHEEL_PYTHON", "")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ONNXPRESS_GPU_WHEEL_PYTHON names no interpreter that has onnxruntime-gpu"
)


def test_one_line_and_reasons(tiny_bundle: Path) -> None:
    checks = check(Path(PYTHON), tiny_bundle)
    assert not [f"{each.name}: {each.seen}" for each in checks if not each.passed]


def all_of_cuda() -> Provider:
    flags = ("cuda_graphs", "tf32", "convolution_max_workspace", "copy_in_default_stream", "unified_stream")
    options = CudaOptions(
        0, 1, "same_as_requested", convolution_search="default", strict_skip_layer_norm=True, prefer_nhwc=True,
        attention_kernels=1, **dict.fromkeys(flags, True),
    )  # fmt: skip
    assert None not in vars(options).values()
    return options.provider()


def all_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Provider:
    install(monkeypatch, FakeMachine())
    options = TensorrtOptions(
        workspace_bytes=1, optimization_level=1, layer_norm_fp32=True, cuda_graphs=True, ep_context=True
    )
    return options.provider(graph())


def test_the_wheels_libraries_have_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import onnxruntime; print(onnxruntime.__path__[0])"
    found = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    for name, provider in ((CUDA_LIBRARY, all_of_cuda()), (TENSORRT_LIBRARY, all_of_tensorrt(monkeypatch))):
        with (Path(found) / "capi" / name).open("rb") as file:
            library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            missing = [key for key in provider.options if library.find(b"\0" + key.encode() + b"\0") < 0]
        assert not missing
