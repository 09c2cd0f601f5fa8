"""Is there exactly one usable onnxruntime? Answered from package metadata, without importing it."""

from __future__ import annotations

import re
from importlib import metadata

MINIMUM_ONNXRUNTIME = (1, 28)
"""The lowest supported (major, minor). The extras ``cpu`` and ``gpu`` in pyproject.toml say the same."""

# Distributions that bring the module `onnxruntime`.
OWN_EXTRAS = ("onnxruntime", "onnxruntime-gpu")
# Builds for other hardware. Some of these names have become those of add-ons that plug into onnxruntime
# instead of replacing it, so what they contain decides.
OTHER_BUILDS = (
    "onnxruntime-acl",
    "onnxruntime-azure",
    "onnxruntime-cann",
    "onnxruntime-directml",
    "onnxruntime-dnnl",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
    "onnxruntime-vitisai",
    "onnxruntime-webgpu",
    "onnxruntime-windowsml",
)


def check_onnxruntime() -> None:
    """Raise ImportError, in one sentence, unless exactly one onnxruntime of a supported version is installed.

    Reads metadata only: the module itself is neither imported nor looked at.
    """
    installed = installed_distributions()
    if not installed:
        raise ImportError(
            "onnxpress needs onnxruntime, which is not installed: run pip install 'onnxpress[cpu]', "
            "or 'onnxpress[gpu]' on a machine with an NVIDIA GPU"
        )
    if len(installed) > 1:
        names = sorted(installed)
        raise ImportError(
            f"{' and '.join(names)} are installed together, but they overwrite each other's files: "
            f"run pip uninstall {' '.join(names)}, then install the one you want, "
            "by pip install 'onnxpress[cpu]' or 'onnxpress[gpu]'"
        )
    name, version = next(iter(installed.items()))
    if _major_minor(version) < MINIMUM_ONNXRUNTIME:
        minimum = ".".join(map(str, MINIMUM_ONNXRUNTIME))
        raise ImportError(
            f"onnxpress needs {name} {minimum} or newer, but {version} is installed: "
            f"run pip install --upgrade '{name}>={minimum}'"
        )


def installed_distributions() -> dict[str, str]:
    """Name and version of every installed distribution that brings the module ``onnxruntime``."""
    versions = {}
    for name in (*OWN_EXTRAS, *OTHER_BUILDS):
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name in OWN_EXTRAS or _brings_module(distribution):
            versions[name] = distribution.version
    return versions


def _brings_module(distribution: metadata.Distribution) -> bool:
    """Whether the distribution's own file list has the module; one without a list is taken to have it."""
    files = distribution.files
    return files is None or any(file.as_posix() == "onnxruntime/__init__.py" for file in files)


def _major_minor(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
