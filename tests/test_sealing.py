"""The output is the complete old bundle, the complete new one, or none, however an export ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxpress
from onnxpress.exporter.sealing import seal, staging_folder
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.errors import InvalidInputError

FAST = ("--measure", "none", "--variants", "fp32,int8")


def export_process(model: Path, output: Path, *options: str, cache: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "onnxpress", "export", str(model), "--output", str(output), *FAST, *options]
    environment = os.environ | ({"ONNXPRESS_CACHE": str(cache)} if cache else {})
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill_at(moments: list[float], model: Path, folder: Path) -> None:
    """Kill an export after each of `moments` seconds; every second one would replace an older bundle."""
    cache = folder / "cache"
    for index, moment in enumerate(moments):
        output = folder / f"bundle{index % 2}"
        before = open_bundle(output).manifest_sha256 if output.exists() else None
        # Emptied now and then, so that steps are also killed while they write to it.
        if index % 4 == 0:
            shutil.rmtree(cache, ignore_errors=True)
        process = export_process(model, output, "--force", cache=cache)
        time.sleep(moment)
        process.kill()
        process.communicate()
        if output.exists():
            open_bundle(output, verify=True)
        elif before is not None:
            # Only between the two renames; the old bundle is then still beside its place.
            assert list(folder.glob(f".{output.name}.onnxpress-*/replaced"))
    for output in (folder / "bundle0", folder / "bundle1"):
        process = export_process(model, output, "--force", cache=cache)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        open_bundle(output, verify=True)
    assert not list(folder.glob(".*onnxpress-*"))


def test_kill_at_many_moments(tiny_model: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    kill_at([rng.uniform(0.1, 2.5) if index % 2 else rng.uniform(2, 14) for index in range(10)], tiny_model, tmp_path)


@pytest.mark.slow
def test_kill_at_very_many_moments(tiny_model: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    kill_at([rng.uniform(0.1, 14) for _ in range(60)], tiny_model, tmp_path)


def test_interrupt_is_one_line_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    process = export_process(tiny_model, tmp_path / "b", cache=tmp_path / "cache")
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # A shell sees 130 in both cases. Python ends itself with the signal, after everything was cleaned up, when the
    # interrupt came inside an `exec` of a library (CPython, pythonrun.c, run_eval_code_obj).
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == "onnxpress: interrupted"
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, spare: int) -> None:
    """Leave `spare` bytes free."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(b"x" * 4096):
                pass
        except OSError:
            pass
        filler.truncate(filler.tell() - spare)


@pytest.mark.parametrize("full", ["output", "cache"])
def test_a_full_disk_is_one_sentence(
    tiny_model: Path,
    tmp_path: Path,
    small_disk: Path,
    full: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxpress.cli import main

    output = (small_disk if full == "output" else tmp_path) / "b"
    if full == "cache":
        monkeypatch.setenv("ONNXPRESS_CACHE", str(small_disk))
    fill(small_disk, 100_000)
    assert main(["export", str(tiny_model), "--output", str(output), *FAST]) == 2
    errors = capsys.readouterr().err
    assert "disk" in errors or "No space left on device" in errors  # numpy does not pass on the reason
    assert len(errors.splitlines()[-1]) < 200
    assert "Traceback" not in errors
    assert not output.exists()
    assert not list(output.parent.glob(".b.onnxpress-*"))


def test_a_full_disk_keeps_the_old_bundle(tiny_bundle: Path, tiny_model: Path, small_disk: Path) -> None:
    output = small_disk / "b"
    shutil.copytree(tiny_bundle, output)
    fill(small_disk, 100_000)
    before = open_bundle(output).manifest_sha256
    with pytest.raises(InvalidInputError, match=r"No space left|disk is full"):
        onnxpress.export(tiny_model, output, onnxpress.ExportConfig(measure="none", force=True))
    assert open_bundle(output, verify=True).manifest_sha256 == before


def test_two_exports_at_once_do_not_hurt_each_other(tiny_model: Path, tmp_path: Path) -> None:
    processes = [export_process(tiny_model, tmp_path / name, cache=tmp_path / "cache") for name in ("a", "b", "b")]
    results = [(process.communicate(timeout=180)[1], process.returncode) for process in processes]
    assert results[0][1] == 0, results[0][0]
    assert sorted(code for _, code in results[1:]) in ([0, 2], [0, 0]), results
    for name in ("a", "b"):
        open_bundle(tmp_path / name, verify=True)
    assert not list(tmp_path.glob(".*onnxpress-*"))


def test_a_live_staging_folder_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "b", False) as first:
        (tmp_path / ".b.onnxpress-dead").mkdir()
        with staging_folder(tmp_path / "b", False) as second:
            assert first.is_dir()
            assert second != first
            assert not (tmp_path / ".b.onnxpress-dead").exists()
    assert not list(tmp_path.iterdir())


def test_sealing_does_not_overwrite_what_appeared_meanwhile(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "b", False) as folder:
        (folder / "onnxpress.json").write_text("{}")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "mine.txt").write_text("precious")
        with pytest.raises(InvalidInputError, match="not empty"):
            seal(folder, tmp_path / "b", force=True)
    assert (tmp_path / "b" / "mine.txt").read_text() == "precious"


def test_a_read_only_bundle_serves(bundle_copy: Path) -> None:
    for path in [*bundle_copy.rglob("*"), bundle_copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert onnxpress.load(bundle_copy, verify=True).embed(["the cat"]).shape == (1, 32)
    finally:
        for path in [bundle_copy, *bundle_copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
