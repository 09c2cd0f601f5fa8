"""The commands as people and scripts use them: what goes to stdout, what to stderr, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxpress
from onnxpress.cli import COMMANDS, main

Capture = pytest.CaptureFixture[str]
QUICK = ("--measure", "none", "--variants", "fp32,int8")


def test_the_version_is_printed(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"onnxpress {onnxpress.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert COMMANDS[name].HELP.split()[0] in capsys.readouterr().out


def test_the_summary_is_the_only_thing_on_stdout(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxpress", "export", str(tiny_model), "--output", str(tmp_path / "b"), "--json"]
    captured = subprocess.run([*command, *QUICK], capture_output=True, text=True, check=True, timeout=120)
    summary = json.loads(captured.stdout)
    assert summary["bundle"] == str(tmp_path / "b")
    assert [variant["name"] for variant in summary["variants"]] == ["fp32", "int8"]
    assert summary["default_variant"] in ("fp32", "int8")
    for words in ("trace the graph", "verify against the model", "seal the bundle", "report.html", "default: "):
        assert words in captured.stderr
    assert "Warning" not in captured.stderr


def test_quiet_says_nothing(tiny_model: Path, tmp_path: Path, capfd: Capture) -> None:
    assert main(["export", str(tiny_model), "--output", str(tmp_path / "b"), "--quiet", *QUICK]) == 0
    assert capfd.readouterr() == ("", "")


def test_inspect_shows_the_bundle(tiny_bundle: Path, capsys: Capture) -> None:
    assert main(["inspect", str(tiny_bundle)]) == 0
    shown = capsys.readouterr().out
    for words in ("feature-extraction", "Pooling", "fp32", "fp16", "int8", "input_ids int64"):
        assert words in shown
    assert main(["inspect", str(tiny_bundle), "--json", "--verify"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["task"] == "feature-extraction"
    assert captured.err.startswith("verified: ")


def test_report_prints_where_the_page_is(tiny_bundle: Path, capsys: Capture) -> None:
    assert main(["report", str(tiny_bundle)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.is_absolute()
    assert page.read_text().lower().startswith("<!doctype html>")


def test_verify_runs_the_gate_again(tiny_bundle: Path, capsys: Capture) -> None:
    assert main(["verify", str(tiny_bundle)]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["fp32", "fp16", "int8"]


def test_a_verdict_that_cannot_be_kept_is_told(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "file"))
    assert main(["verify", str(tiny_bundle), "--variant", "fp32"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("onnxpress: variant 'fp32': passed on CPUExecutionProvider: ")
    assert ": Not a directory; set ONNXPRESS_CACHE to a folder that can be written" in shown


def test_run_reads_and_writes_files(tiny_bundle: Path, tmp_path: Path) -> None:
    texts = [f"the cat {number}" for number in range(40)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    assert main(["run", str(tiny_bundle), "-i", str(source), "-o", str(target), "--column", "body"]) == 0
    found = np.array([json.loads(line)["embedding"] for line in target.read_text().splitlines()])
    np.testing.assert_allclose(found, onnxpress.load(tiny_bundle).embed(texts), atol=1e-5)


def test_a_reader_that_goes_away_ends_the_command_calmly(tiny_bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("the cat\n" * 3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxpress", "run", str(tiny_bundle), "-i", str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert errors == ""
