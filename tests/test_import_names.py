"""What importing onnxpress does and does not do: names, the one onnxruntime, what is loaded, how fast."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

import onnxpress
from onnxpress import _onnxruntime
from onnxpress.runtime.machine import onnxruntime_version

ROOT = Path(__file__).resolve().parent.parent
ROOT_PACKAGES = ("exporter", "quantize", "runtime", "models")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# --- one name per module ---


@pytest.mark.parametrize("name", ROOT_PACKAGES)
def test_root_package_refuses_its_folder_name(name: str) -> None:
    done = run_python(f"import {name}", PYTHONPATH=str(ROOT))
    last_line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last_line == (f"ImportError: this is the package onnxpress.{name}: import it by that name, not as '{name}'")


@pytest.mark.parametrize("name", ROOT_PACKAGES)
def test_root_package_is_part_of_onnxpress_also_with_the_root_on_the_path(name: str) -> None:
    done = run_python(f"import onnxpress.{name} as m; print(m.__name__)", PYTHONPATH=str(ROOT))
    assert done.stderr == ""
    assert done.stdout.strip() == f"onnxpress.{name}"


# --- public names ---


def test_all_names_are_the_promised_ones() -> None:
    promised = {"BatchingRunner", "load", "export", "ExportConfig", "ExportResult", "OnnxpressError", "__version__"}
    assert set(onnxpress.__all__) == promised
    assert promised <= set(dir(onnxpress))


@pytest.mark.parametrize("name", onnxpress.__all__)
def test_each_public_name_can_be_had(name: str) -> None:
    assert getattr(onnxpress, name) is getattr(onnxpress, name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'onnxpress' has no attribute 'lod'"):
        getattr(onnxpress, "lod")  # noqa: B009 (a type checker would refuse the plain form)


def test_missing_export_library_is_one_sentence() -> None:
    blocked = "import sys, onnxpress; sys.modules['onnxpress.exporter'] = None; onnxpress.export"
    # A module that is None in sys.modules fails like a missing one, but names us: that must not be hidden.
    assert "ModuleNotFoundError: import of onnxpress.exporter halted" in run_python(blocked).stderr

    code = """
import sys, types, onnxpress

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxpress.exporter":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
onnxpress.ExportConfig
"""
    last_line = run_python(code).stderr.strip().splitlines()[-1]
    assert last_line == (
        "ImportError: onnxpress.ExportConfig needs torch, which is not installed: run pip install 'onnxpress[export]'"
    )


# --- telemetry ---


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_telemetry_is_off_unless_the_user_decided(before: str | None, after: str) -> None:
    prepare = "pop('ORT_DISABLE_TELEMETRY', 0)" if before is None else f"update(ORT_DISABLE_TELEMETRY={before!r})"
    code = f"import os; os.environ.{prepare}; import onnxpress; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run_python(code).stdout.strip() == after


# --- a light import ---


def test_import_loads_nothing_heavy() -> None:
    done = run_python(
        "import sys; before = set(sys.modules); import onnxpress;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert loaded == {"onnxpress"}


def test_runtime_loads_no_export_library() -> None:
    done = run_python("import sys, onnxpress; onnxpress.load; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "scipy"}


@pytest.mark.parametrize(
    ("arguments", "limit_seconds"),
    [(["-c", "import onnxpress"], 0.15), (["-m", "onnxpress", "--help"], 0.30)],
    ids=["import", "help"],
)
def test_start_is_quick(arguments: list[str], limit_seconds: float) -> None:
    # The best of several, in turn with the bare interpreter: on a busy machine only the fastest run counts.
    bare_seconds, seconds = [], []
    for _ in range(7):
        bare_seconds.append(_seconds_of(["-c", "pass"]))
        seconds.append(_seconds_of(arguments))
    assert min(seconds) - min(bare_seconds) < limit_seconds


def _seconds_of(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


# --- exactly one onnxruntime, and a recent one ---


@dataclass
class FakeDistribution:
    version: str
    brings_module: bool = True

    @property
    def files(self) -> list[PurePosixPath]:
        folder = "onnxruntime" if self.brings_module else "onnxruntime_plugin"
        return [PurePosixPath(folder, "capi", "x.so"), PurePosixPath(folder, "__init__.py")]


def install(monkeypatch: pytest.MonkeyPatch, distributions: Mapping[str, FakeDistribution]) -> None:
    def distribution(name: str) -> FakeDistribution:
        try:
            return distributions[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(_onnxruntime.metadata, "distribution", distribution)


@pytest.mark.parametrize(
    "installed",
    [
        {"onnxruntime": FakeDistribution("1.28.0")},
        {"onnxruntime": FakeDistribution("2.0.0")},
        {"onnxruntime-gpu": FakeDistribution("1.31.1")},
        {"onnxruntime-gpu": FakeDistribution("1.33.0.dev20261101001")},
        {"onnxruntime-directml": FakeDistribution("1.30.0")},
        {"onnxruntime-openvino": FakeDistribution("1.28.1+local")},
        # An add-on beside the one that it plugs into.
        {
            "onnxruntime": FakeDistribution("1.32.0"),
            "onnxruntime-qnn": FakeDistribution("2.7.0", brings_module=False),
        },
    ],
    ids=lambda installed: " ".join(f"{name}-{fake.version}" for name, fake in installed.items()),
)
def test_one_recent_onnxruntime_is_accepted(
    monkeypatch: pytest.MonkeyPatch, installed: Mapping[str, FakeDistribution]
) -> None:
    install(monkeypatch, installed)
    _onnxruntime.check_onnxruntime()
    assert onnxruntime_version() == next(iter(installed.values())).version


NOT_INSTALLED = (
    "onnxpress needs onnxruntime, which is not installed: run pip install 'onnxpress[cpu]', "
    "or 'onnxpress[gpu]' on a machine with an NVIDIA GPU"
)
TOGETHER = (
    "onnxruntime and onnxruntime-gpu are installed together, but they overwrite each other's files: run pip "
    "uninstall onnxruntime onnxruntime-gpu, then install the one you want, by pip install 'onnxpress[cpu]' "
    "or 'onnxpress[gpu]'"
)
TOO_OLD = (
    "onnxpress needs onnxruntime 1.28 or newer, but 1.27.9 is installed: run pip install --upgrade 'onnxruntime>=1.28'"
)
TOO_OLD_GPU = (
    "onnxpress needs onnxruntime-gpu 1.28 or newer, but 1.9.0 is installed: "
    "run pip install --upgrade 'onnxruntime-gpu>=1.28'"
)


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        pytest.param({}, NOT_INSTALLED, id="none"),
        pytest.param(
            {"onnxruntime-qnn": FakeDistribution("2.7.0", brings_module=False)},
            NOT_INSTALLED,
            id="only an add-on",
        ),
        pytest.param(
            {"onnxruntime": FakeDistribution("1.32.0"), "onnxruntime-gpu": FakeDistribution("1.31.1")},
            TOGETHER,
            id="two",
        ),
        pytest.param({"onnxruntime": FakeDistribution("1.27.9")}, TOO_OLD, id="too old"),
        pytest.param({"onnxruntime-gpu": FakeDistribution("1.9.0")}, TOO_OLD_GPU, id="9 is less than 28"),
    ],
)
def test_other_onnxruntimes_are_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, installed: Mapping[str, FakeDistribution], sentence: str
) -> None:
    install(monkeypatch, installed)
    with pytest.raises(ImportError) as caught:
        _onnxruntime.check_onnxruntime()
    assert str(caught.value) == sentence


def test_extras_ask_for_the_lowest_version_that_is_checked() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lowest = ".".join(map(str, _onnxruntime.MINIMUM_ONNXRUNTIME))
    assert extras["cpu"] == [f"onnxruntime>={lowest}"]
    assert extras["gpu"] == [f"onnxruntime-gpu>={lowest}"]


def test_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", onnxpress.__version__)
    assert metadata.version("onnxpress") == onnxpress.__version__
