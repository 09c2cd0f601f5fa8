"""docs/serving.md and the Dockerfile, against what the server takes and what is there."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from onnxpress.runtime.server.settings import Limits, ServedBundle, ServedGuard, ServerSettings
from tests.served import serving

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("cls", [ServerSettings, ServedBundle, ServedGuard], ids=lambda cls: cls.__name__)
def test_every_key_of_the_configuration_is_documented(cls: Any) -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert {field.name for field in dataclasses.fields(cls)} <= named


def test_defaults_are_those_documented() -> None:
    defaults = ServerSettings.of(["bundle"])
    rows = dict(re.findall(r"^\| `([a-z_]+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE))
    for name in (
        "port", "workers", "lame_duck_seconds", "drain_seconds", "worker_timeout_seconds",
    ):  # fmt: skip
        assert float(rows[name]) == getattr(defaults, name)


def test_the_example_of_a_configuration_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "serving.toml").write_text(example)
    settings = ServerSettings.read(tmp_path / "serving.toml")
    assert [bundle.called for bundle in settings.bundles] == ["embedder", "writer"]
    assert settings.limits == Limits(items=256, seconds=20.0)
    assert settings.guards[0].thresholds == {"toxic": 0.8}


# --- the image ---


def instructions() -> list[tuple[str, str]]:
    """Name and arguments, lines joined and comments dropped."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last_stage() -> dict[str, str]:
    """The last of each instruction after the last FROM."""
    found: dict[str, str] = {}
    for name, rest in instructions():
        if name == "FROM":
            found = {}
        found[name] = rest
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out of what is built from."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!").removeprefix("**/")
        if pattern and not pattern.startswith("#"):
            parts = Path(path).parts
            if fnmatch.fnmatch(parts[0], pattern) or (
                "**/" in line and any(fnmatch.fnmatch(part, pattern) for part in parts)
            ):
                result = not line.startswith("!")
    return result


def test_the_image_is_not_for_root_and_hears_signals() -> None:
    stage = last_stage()
    user = stage["USER"].partition(":")[0]
    assert user.isdigit()  # Kubernetes cannot tell of a name that it is not root's
    assert int(user) > 0
    assert json.loads(stage["ENTRYPOINT"])[:2] == ["onnxpress", "serve"]
    assert isinstance(json.loads(stage["CMD"]), list)
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert "curl" not in stage["HEALTHCHECK"]
    assert json.loads(stage["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"
    assert f"--chown={stage['USER']} /cache /cache" in stage["COPY"]
    assert "ONNXPRESS_CACHE=/cache" in stage["ENV"]


def test_the_image_has_what_serves_and_not_what_exports() -> None:
    copied = {part for name, rest in instructions() if name == "COPY" and "--from" not in rest for part in rest.split()}
    copied.discard("./")
    assert all((ROOT / path).exists() and not ignored(path) for path in copied)
    links = {link.name for link in (ROOT / "src" / "onnxpress").iterdir() if link.is_symlink()}
    assert links <= copied
    assert ignored("tests/conftest.py")
    assert ignored(".git/config")
    assert ignored("runtime/__pycache__/runner.pyc")
    assert not ignored("runtime/runner.py")
    extras = {extra for names in re.findall(r"\.\[([a-z,]+)\]", DOCKERFILE) for extra in names.split(",")}
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras == {"cpu", "gpu", "serve", "traces"}
    assert extras <= set(known)


def health_check(url: str) -> int:
    """The exit status of the image's check, asked about another address."""
    program, *arguments = json.loads(last_stage()["HEALTHCHECK"].partition("CMD ")[2])
    assert program == "python"
    environment = {**os.environ, "HEALTH_URL": url}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=60).returncode


def test_the_image_notices_whether_a_server_is_ready(tiny_bundle: Path) -> None:
    with serving(tiny_bundle) as served:
        url = f"http://127.0.0.1:{served.port}/health/ready"
        assert health_check(url) == 0
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
        assert health_check(url) == 1


@pytest.mark.slow
def test_the_steps_of_the_image_make_a_server_without_pytorch(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("src", "exporter", "quantize", "runtime", "models"):
        left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=left_out)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (steps,) = (rest for name, rest in instructions() if name == "RUN")
    here = steps.replace("/opt/onnxpress", str(tmp_path / "opt")).replace("/cache", str(tmp_path / "cache"))
    here = re.sub(r"\bpython -m", f"{sys.executable} -m", here)
    done = subprocess.run(
        ["sh", "-ec", here], cwd=source, env={**os.environ, "ACCELERATOR": "cpu"}, capture_output=True, text=True
    )
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    python = tmp_path / "opt" / "bin" / "python"
    absent = (
        "import importlib.util as u; assert not [n for n in ('torch', 'transformers', 'onnx', 'pip') if u.find_spec(n)]"
    )
    subprocess.run([python, "-c", absent], check=True, cwd=tmp_path)
    with serving(tiny_bundle, "--workers", "2", python=python, HOME=str(tmp_path / "cache")) as served:
        assert health_check(f"http://127.0.0.1:{served.port}/health/ready") == 0
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
