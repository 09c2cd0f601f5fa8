"""What this machine is: processor, features that matter for kernels, usable cores, versions. Asks the system, loads no
library of a device; what follows from the features is in hardware.py.

Figures measured on one machine say little about another, so they are stored together with what this module returns.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from onnxpress._onnxruntime import installed_distributions

# The instruction sets onnxruntime's matrix kernels (MLAS) choose between.
_KERNEL_FEATURES = (
    "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_VERSIONED = (
    "onnxpress", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "torch", "transformers", "onnx", "onnxscript",
    "onnx-ir", "onnxconverter-common", "optimum",
)  # fmt: skip
# Where macOS says whether the processor has them (xnu: bsd/kern/kern_mib.c); an entry it does not know is not there.
_SYSCTLS = {
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
_NVIDIA_SMI_SECONDS = 20.0  # it wakes a sleeping GPU first
_NO_LIMIT_BYTES = 2**62  # version 1 writes 2**63 rounded down to a page

N = TypeVar("N", int, float)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The hardware and system that figures belong to."""

    cpu: str
    architecture: str
    cores: int
    """Cores this process may use: affinity and cgroup quota considered, hyper-threads counted once."""
    cpu_features: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    gpu: str | None

    def key(self) -> str:
        """Short name of everything here that changes a measurement, for cache folders."""
        identity = (self.cpu, self.architecture, self.cores, self.cpu_features, self.gpu)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


@functools.cache
def describe_machine() -> Machine:
    """The machine this process runs on."""
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split()) or _darwin_features()
    brand = info.get("model name") or _sysctl("machdep.cpu.brand_string").decode(errors="replace").rstrip("\0")
    return Machine(
        cpu=brand or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=usable_cores(),
        cpu_features=tuple(feature for feature in _KERNEL_FEATURES if feature in flags),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        gpu=_gpu_name(),
    )


@functools.cache
def compute_capability() -> str | None:
    """CUDA compute capability of this machine's NVIDIA GPU, such as "8.9", the lowest where there are several; None
    without one. Asks the driver's own tool, so that no CUDA library is loaded into this process."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer offers no GPU
        return None
    found = [line.strip() for line in done.stdout.splitlines() if re.fullmatch(r"\d+\.\d+", line.strip())]
    return min(found, key=lambda text: tuple(map(int, text.split("."))), default=None)


def onnxruntime_version() -> str | None:
    """Version of the onnxruntime that is installed, without importing it."""
    return next(iter(installed_distributions().values()), None)


def versions(names: Sequence[str] = _VERSIONED) -> dict[str, str]:
    """Installed versions of the packages a bundle or a measurement depends on, those that are here."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Cores this process may keep busy: the affinity mask and the cgroup's CPU quota, hyper-threads counted once.

    A container limited to two CPUs on a large host gets 2, not the host's count, which would oversubscribe it.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = len({_core_of(cpu) for cpu in allowed}) or 1
    quota = _cgroup_cpu_quota()
    return max(1, min(cores, int(quota + 0.5))) if quota else cores


def _core_of(cpu: int) -> str:
    """Name of the physical core a logical processor belongs to."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def cgroup_cpus() -> float | None:
    """CPUs that the cgroup allows this process, or None for no limit."""
    return _cgroup_cpu_quota()


def cgroup_memory_bytes(root: Path = Path("/sys/fs/cgroup"), self_file: Path = Path("/proc/self/cgroup")) -> int | None:
    """Memory that the cgroup (version 2 or 1) and everything above it allow this process, or None for no limit."""
    return min(_cgroup_limits("memory", _memory_v2, _memory_v1, root, self_file), default=None)


def _cgroup_cpu_quota(root: Path = Path("/sys/fs/cgroup"), self_file: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs allowed by the cgroup (version 2 or 1) and everything above it, or None for no limit."""
    return min(_cgroup_limits("cpu", _quota_v2, _quota_v1, root, self_file), default=None)


def _cgroup_limits(
    controller: str,
    read_v2: Callable[[Path], N | None],
    read_v1: Callable[[Path], N | None],
    root: Path,
    self_file: Path,
) -> list[N]:
    """The limits of a controller that this process's group, and every group above it, set."""
    try:
        lines = self_file.read_text(errors="surrogateescape").splitlines()  # names of groups are any bytes
    except OSError:
        return []
    limits = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            base, read = root, read_v2
        elif controller in controllers.split(","):
            base, read = root / controller, read_v1
        else:
            continue
        folder: Path = base / group.strip("/")
        for candidate in (folder, *folder.parents):
            if candidate != base and base not in candidate.parents:
                break
            limit = read(candidate)
            if limit is not None:
                limits.append(limit)
    return limits


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _memory_v2(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit)
    except (OSError, ValueError):
        return None


def _memory_v1(folder: Path) -> int | None:
    try:
        limit = int((folder / "memory.limit_in_bytes").read_text())
    except (OSError, ValueError):
        return None
    return None if limit >= _NO_LIMIT_BYTES else limit


def _cpu_info() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo, empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _darwin_features() -> set[str]:
    """Features as Linux names them; empty elsewhere than on macOS."""
    return {feature for name, feature in _SYSCTLS.items() if any(_sysctl(name))}


def _sysctl(name: str) -> bytes:
    """What macOS says under a name, empty where it says nothing or this is another system."""
    if sys.platform != "darwin":
        return b""
    system, size = ctypes.CDLL(None), ctypes.c_size_t(0)
    if system.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0):
        return b""
    value = ctypes.create_string_buffer(size.value)
    failed = system.sysctlbyname(name.encode(), value, ctypes.byref(size), None, 0)
    return b"" if failed else value.raw[: size.value]


def _memory_bytes() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _gpu_name() -> str | None:
    """The first NVIDIA GPU's model as its driver tells, without loading any library."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text().splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None


def resident_memory_bytes() -> int | None:
    """Physical memory that this process holds, or None where the system does not tell (it is Linux that does)."""
    return _memory_in_status("VmRSS")


def peak_memory_bytes() -> int | None:
    """The most physical memory this process has held so far, or None where the system does not tell."""
    # Not getrusage on Linux: its figure starts with that of the process this one was started from.
    return _memory_in_status("VmHWM") or _peak_from_rusage()


def _memory_in_status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _peak_from_rusage() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
