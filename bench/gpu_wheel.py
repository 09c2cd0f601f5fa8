"""What onnxruntime's GPU wheel does on a machine without a GPU: one line instead of a screen of red text.

`python -m bench.gpu_wheel` makes a virtual environment with onnxruntime-gpu (about 350 MB to download; `--keep FOLDER`
keeps it for the next time), presses a tiny random model with the interpreter that runs this, and loads the bundle in
the environment: choosing by itself must work, say what it did in one line and print nothing else; asking for CUDA or
TensorRT must fail with the reason and with what to install. Beside it stands how many lines plain onnxruntime prints.
On a machine whose GPU works there is nothing to see, and it says so.

tests/test_gpu_wheel.py checks the same with the interpreter that ONNXPRESS_GPU_WHEEL_PYTHON names.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from bench import common

_PACKAGES = ("onnxruntime-gpu>=1.28", "numpy", "tokenizers", "rich")
_LOAD = "import sys, onnxpress; print(len(onnxpress.load(sys.argv[1]).embed(['a text', 'another'])), flush=True)"
_ASK = "import sys, onnxpress; onnxpress.load(sys.argv[1], providers=sys.argv[2])"
_PLAIN = (
    "import sys, onnxruntime as ort; "
    "print(ort.InferenceSession(sys.argv[1], providers=ort.get_available_providers()).get_providers()[0], flush=True)"
)
_CUDA_WORKS = "from onnxpress.runtime.providers import CUDA, unusable_because; print(unusable_because(CUDA) is None)"


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that must hold, and what was seen."""

    name: str
    passed: bool
    seen: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print; the exit status says whether all holds if that is required."""
    parser = argparse.ArgumentParser(prog="bench.gpu_wheel", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", metavar="PATH", help="an interpreter that has onnxruntime-gpu already")
    parser.add_argument(
        "--keep", metavar="FOLDER", type=Path, help="where to make the environment, or to find it again"
    )
    parser.add_argument(
        "--bundle", type=common.existing_folder, help="a bundle for embeddings to load (default: a tiny one)"
    )
    parser.add_argument("--require", action="store_true", help="exit with status 1 if something does not hold")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.gpu_wheel: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """Environment, bundle, checks."""
    facts = common.record()
    common.show_record(facts)
    with tempfile.TemporaryDirectory() as scratch:
        python = Path(options.python) if options.python else make_environment(options.keep or Path(scratch) / "venv")
        bundle = options.bundle or make_bundle(Path(scratch))
        checks = check(python, bundle)
    print()
    for each in checks:
        print(f"{'holds     ' if each.passed else 'DOES NOT  '}  {each.name}\n              {each.seen}")
    failed = sum(not each.passed for each in checks)
    figures = {"benchmark": "gpu_wheel", "checks": [dataclasses.asdict(each) for each in checks], "machine": facts}
    return common.finish(figures, [common.Limit("checks that do not hold", failed, 0)], options.require)


def check(python: Path, bundle: Path) -> list[Check]:
    """What must hold in an environment with the GPU wheel on a machine without a GPU.

    Raises:
        BadInputError: the interpreter cannot run onnxpress, or CUDA works there.
    """
    works = _run(python, _CUDA_WORKS)
    if works.returncode:
        last_line = (works.stderr.strip().splitlines() or ["no output"])[-1]
        raise common.BadInputError(f"{python} does not run onnxpress: {last_line[:300]}")
    if works.stdout.strip() == "True":
        raise common.BadInputError("CUDA works on this machine, so there is nothing to see of its absence")
    model = next(bundle.glob("fp32*/model.onnx"))
    plain = _run(python, _PLAIN, str(model))
    printed = (plain.stdout + plain.stderr).strip().splitlines()[:-1]
    loaded = _run(python, _LOAD, str(bundle))
    said = loaded.stderr.strip().splitlines()
    checks = [
        Check("choosing by itself works", loaded.returncode == 0 and loaded.stdout == "2\n", loaded.stdout.strip()),
        Check("it prints one line", len(said) == 1, f"{len(said)} line(s), plain onnxruntime {len(printed)}"),
        Check(
            "that line says what it did and why",
            all(word in loaded.stderr for word in ("is served on CPUExecutionProvider", "cannot be used: ")),
            loaded.stderr.strip(),
        ),
        Check("nothing of it is red", "\x1b[" not in loaded.stderr + loaded.stdout, "no escape sequences"),
    ]
    for name, full in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")):
        asked = _run(python, _ASK, str(bundle), name)
        last = (asked.stderr.strip().splitlines() or [""])[-1]
        named = f"ProviderError: the provider {full} was asked for but cannot be used: " in last
        checks.append(Check(f"asking for {name} fails with the reason", asked.returncode == 1 and named, last))
        command = _run(python, None, "run", str(bundle), "--providers", name, "--prompt", "text")
        lines = command.stderr.strip().splitlines()
        checks.append(
            Check(
                f"so does the command, in one line, with --providers {name}",
                command.returncode == 2 and len(lines) == 1 and full in lines[0],
                f"status {command.returncode}, {len(lines)} line(s)",
            )
        )
    return checks


def make_environment(folder: Path) -> Path:
    """A virtual environment with the GPU wheel and what the runtime needs, made unless it is there; its interpreter.

    Raises:
        BadInputError: pip failed.
    """
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True, symlinks=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *_PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise common.BadInputError(f"pip cannot install the GPU wheel: {done.stderr.strip()[-300:]}")
    return python


def make_bundle(folder: Path) -> Path:
    """A tiny random sentence embedder, pressed."""
    import onnxpress
    from tests.models import make_embedder

    model = make_embedder(folder / "model")
    return onnxpress.export(model, folder / "bundle", onnxpress.ExportConfig(measure="none")).folder


def _run(python: Path, code: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python code, or the command `onnxpress`, with this checkout."""
    start = ["-c", code] if code is not None else ["-m", "onnxpress"]
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT / "src"), "ORT_DISABLE_TELEMETRY": "1"}
    command = [str(python), *start, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


if __name__ == "__main__":
    sys.exit(main())
