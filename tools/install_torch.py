"""Install PyTorch into the running environment, without gigabytes of CUDA libraries where they are of no use.

On Linux, a plain ``pip install torch`` brings CUDA even to a machine that has no NVIDIA driver. There, this
tries the CPU build in the ways in which it may be had, and takes the plain one when nothing else works.
Elsewhere it does nothing: the ordinary installation that follows does the right thing.

Used by the Makefile; needs the standard library only.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass

# The version the project is developed with. The extra `export` in pyproject.toml says the lowest one.
TORCH_VERSION = "2.13.0"


@dataclass(frozen=True)
class Attempt:
    """One way to get PyTorch: commands to run in order, each the arguments of ``python -m``."""

    description: str
    commands: tuple[tuple[str, ...], ...]


def choose_attempts(platform: str, has_nvidia_driver: bool, has_torch: bool) -> list[Attempt]:
    """The ways to try, best first; none when the ordinary installation needs no help."""
    if has_torch or has_nvidia_driver or platform != "linux":
        return []
    pip = ("pip", "install", "--quiet")
    uv = ("uv", "pip", "install", "--quiet", "--python", sys.executable)
    return [
        Attempt(
            "the CPU build, where the configured package index or a local folder has it",
            ((*pip, f"torch=={TORCH_VERSION}+cpu"),),
        ),
        Attempt(
            "the CPU build through uv, which knows where PyTorch publishes it",
            ((*pip, "uv"), (*uv, "--torch-backend", "cpu", f"torch=={TORCH_VERSION}")),
        ),
        Attempt(
            "the ordinary build, with gigabytes of CUDA libraries that this machine cannot use",
            ((*pip, f"torch=={TORCH_VERSION}"),),
        ),
    ]


def main() -> int:
    """Try each way in turn and stop at the first that works; the exit status is 1 when none does."""
    attempts = choose_attempts(
        platform=sys.platform,
        has_nvidia_driver=shutil.which("nvidia-smi") is not None,
        has_torch=importlib.util.find_spec("torch") is not None,
    )
    for attempt in attempts:
        print(f"PyTorch: trying {attempt.description}", flush=True)
        errors = ""
        for command in attempt.commands:
            done = subprocess.run([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True)
            if done.returncode != 0:
                errors = done.stderr.strip()
                break
        else:
            return 0
        print(f"PyTorch: not to be had that way ({errors.splitlines()[-1] if errors else 'no reason given'})")
    return 1 if attempts else 0


if __name__ == "__main__":
    sys.exit(main())
