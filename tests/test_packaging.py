"""The wheel and the sdist: what is in them, and that the wheel works where there is nothing else.

The default run installs the wheel beside links to the packages it asks for, so that it needs no network and
takes seconds. The slow test does what a user does, with pip and a package index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.install_torch import TORCH_VERSION, choose_attempts

ROOT = Path(__file__).resolve().parent.parent
ROOT_PACKAGES = ("exporter", "quantize", "runtime", "models")
PACKAGED_SUFFIXES = {".py", ".toml", ".tsv", ".jsonl", ".conll", ".html", ".css", ".js", ".svg"}
EXPORT_ONLY = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxconverter_common",
    "optimum",
    "scipy",
)

NO_ONNXRUNTIME = (
    "onnxpress needs onnxruntime, which is not installed: run pip install 'onnxpress[cpu]', "
    "or 'onnxpress[gpu]' on a machine with an NVIDIA GPU"
)
# Imports what serves a bundle, and fails if anything that only an export needs can be found.
CHECK_RUNTIME = f"""
import importlib.util, sys
import onnxpress
onnxpress.load
found = [name for name in {EXPORT_ONLY!r} if name in sys.modules or importlib.util.find_spec(name)]
assert not found, found
print(onnxpress.__file__)
"""


@dataclass(frozen=True)
class Archives:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """An sdist, and a wheel built from that sdist: so the sdist is complete."""
    # A copy, because setuptools writes beside the source.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", *ROOT_PACKAGES):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    # The versions of the build tools are pinned in the extra `dev`, so nothing is downloaded.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)])
    (wheel,) = (source / "dist").glob("*.whl")
    (sdist,) = (source / "dist").glob("*.tar.gz")
    return Archives(wheel, sdist)


def run(command: list[str | Path], **environment: str) -> str:
    """Standard output of a command that must succeed, run away from the source tree."""
    done = run_any(command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_any(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        command, cwd=Path(sys.prefix), env={**inherited, **environment}, capture_output=True, text=True
    )


def expected_files() -> set[str]:
    """Every source and data file of the package, by its path in a wheel."""
    package = ROOT / "src" / "onnxpress"
    files = {"onnxpress/py.typed"}
    for folder in (package, *(package / name for name in ROOT_PACKAGES)):
        for path in folder.rglob("*"):
            if path.suffix in PACKAGED_SUFFIXES and path.is_file():
                files.add(path.relative_to(package.parent).as_posix())
    return files


# --- what is in the archives ---


def test_wheel_has_every_file_and_no_other(archives: Archives) -> None:
    with zipfile.ZipFile(archives.wheel) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert found == expected_files()
    assert licences


def test_sdist_has_every_file(archives: Archives) -> None:
    with tarfile.open(archives.sdist) as sdist:
        top = sdist.getnames()[0].partition("/")[0]
        found = {member.name.removeprefix(f"{top}/src/") for member in sdist.getmembers() if member.isfile()}
        links = [member.name for member in sdist.getmembers() if member.issym() or member.islnk()]
    assert expected_files() <= found
    assert {f"{top}/pyproject.toml", f"{top}/README.md", f"{top}/LICENSE"} <= found
    assert links == []


def test_recipes_are_in_the_package() -> None:
    assert [name for name in expected_files() if name.startswith("onnxpress/models/") and name.endswith(".toml")]


# --- the wheel where there is nothing else ---


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.scripts / "python"

    @property
    def site_packages(self) -> Path:
        return Path(run([self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())

    def install_wheel(self, wheel: Path) -> None:
        run([sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-deps", wheel])

    def link(self, distributions: Iterable[metadata.Distribution]) -> None:
        """Make installed distributions visible here too, without copying them."""
        for distribution in distributions:
            for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
                target = self.site_packages / name
                if not target.exists():
                    target.symlink_to(Path(str(distribution.locate_file(name))))


@pytest.fixture
def bare(tmp_path: Path, archives: Archives) -> Environment:
    """The wheel alone."""
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"])
    environment = Environment(tmp_path / "bare")
    environment.install_wheel(archives.wheel)
    return environment


def requirements_of(name: str, extra: str) -> dict[str, metadata.Distribution]:
    """The installed distributions that pip would install for `name[extra]`, without itself."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [(name, extra)]
    while waiting:
        current, current_extra = waiting.pop()
        for line in metadata.requires(current) or []:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": current_extra}):
                continue
            if requirement.name not in found:
                found[requirement.name] = metadata.distribution(requirement.name)
                waiting += [(requirement.name, wanted) for wanted in (requirement.extras or [""])]
    return found


@pytest.mark.skipif(os.name == "nt", reason="links to packages need a privilege on Windows")
def test_wheel_serves_with_only_what_it_asks_for(bare: Environment, archives: Archives, tiny_bundle: Path) -> None:
    bare.link(requirements_of("onnxpress", "cpu").values())
    location = Path(run([bare.python, "-c", CHECK_RUNTIME]).strip())
    assert location.is_relative_to(bare.folder)
    assert "export" in run([bare.scripts / "onnxpress", "--help"])
    assert "export" in run([bare.python, "-m", "onnxpress", "--help"])
    measured = json.loads(run([bare.scripts / "onnxpress", "bench", tiny_bundle, "--variant", "int8", "--json"]))
    assert [variant["name"] for variant in measured["variants"]] == ["int8"]


def test_without_onnxruntime_the_import_says_so(bare: Environment) -> None:
    done = run_any([bare.python, "-c", "import onnxpress"])
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"ImportError: {NO_ONNXRUNTIME}"


def test_without_onnxruntime_the_command_says_so_without_a_traceback(bare: Environment) -> None:
    for command in (
        [bare.scripts / "onnxpress", "--help"],
        [bare.python, "-m", "onnxpress", "--help"],
        [bare.python, "-Im", "onnxpress", "--help"],
    ):
        done = run_any(command)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"onnxpress: {NO_ONNXRUNTIME}\n")


@pytest.mark.slow
def test_wheel_installs_from_an_index_into_a_clean_environment(tmp_path: Path, archives: Archives) -> None:
    run([sys.executable, "-m", "venv", tmp_path / "clean"])
    environment = Environment(tmp_path / "clean")
    pip: list[str | Path] = [environment.python, "-m", "pip", "--disable-pip-version-check"]
    index = run_any([*pip, "download", "--quiet", "--no-deps", "--dest", tmp_path, "packaging"])
    if index.returncode != 0:
        pytest.skip(f"no package index can be reached: {index.stderr.strip().splitlines()[-1]}")

    run([*pip, "install", "--quiet", f"{archives.wheel}[cpu]"])
    location = Path(run([environment.python, "-c", CHECK_RUNTIME]).strip())
    assert location.is_relative_to(environment.folder)
    assert "export" in run([environment.scripts / "onnxpress", "--help"])

    run([*pip, "uninstall", "--quiet", "--yes", "onnxruntime"])
    done = run_any([environment.scripts / "onnxpress", "--help"])
    assert (done.returncode, done.stderr) == (2, f"onnxpress: {NO_ONNXRUNTIME}\n")


# --- PyTorch for the machine at hand ---


def test_cpu_machine_tries_the_small_builds_first() -> None:
    attempts = choose_attempts("linux", has_nvidia_driver=False, has_torch=False)
    asked = [attempt.commands[-1] for attempt in attempts]
    assert [command[-1] for command in asked] == [
        f"torch=={TORCH_VERSION}+cpu",
        f"torch=={TORCH_VERSION}",
        f"torch=={TORCH_VERSION}",
    ]
    assert [command[0] for command in asked] == ["pip", "uv", "pip"]
    assert asked[1][asked[1].index("--torch-backend") + 1] == "cpu"


@pytest.mark.parametrize(
    ("platform", "has_nvidia_driver", "has_torch"),
    [("linux", True, False), ("linux", False, True), ("darwin", False, False), ("win32", False, False)],
    ids=["NVIDIA driver", "torch is there", "macOS", "Windows"],
)
def test_other_machines_need_no_help(platform: str, has_nvidia_driver: bool, has_torch: bool) -> None:
    assert choose_attempts(platform, has_nvidia_driver, has_torch) == []
