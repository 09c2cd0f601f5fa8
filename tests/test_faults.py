"""Bad input costs one clear sentence and exit status 2, never a traceback, and never what was there before."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import onnxpress
from onnxpress.cli import main
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.tokenizer import MAX_TEXT_CHARACTERS

Capture = pytest.CaptureFixture[str]


def sentence(capture: Capture, *arguments: str) -> str:
    """What the command says when it refuses: one line."""
    assert main(list(arguments)) == 2
    lines = capture.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("onnxpress: ")
    return lines[0]


# Models


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_a_pickle(folder: Path) -> None:
    remove_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert",')


def unknown_architecture(folder: Path) -> None:
    (folder / "modules.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "bertha", "architectures": ["BerthaModel"]}))


def other_task(folder: Path) -> None:
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (truncate, "truncated"),
        (remove_weights, "no weights"),
        (only_a_pickle, "--allow-pickle"),
        (broken_config, "config.json"),
        (unknown_architecture, "BerthaModel"),
        (other_task, "text-classification"),
    ],
)
def test_a_model_that_cannot_be_exported(
    damage: Callable[[Path], None], part: str, tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(model)
    assert part in sentence(capsys, "export", str(model), "--output", str(tmp_path / "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: Capture) -> None:
    assert "./nowhere" in sentence(capsys, "export", "./nowhere", "--output", str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--task", "translation"), "'translation'"),
        (("--variants", "fp32,fp99"), "fp99"),
        (("--variants", ""), "variant"),
        (("--target", "cuda", "--variants", "int8"), "int8"),
        (("--max-accuracy-drop", "-1"), "-1"),
        (("--threads", "0"), "0"),
        (("--threads", "99999"), "99999"),
        (("--eval", "missing.tsv"), "missing.tsv"),
    ],
)
def test_an_option_that_cannot_be_used(
    options: tuple[str, ...], part: str, tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert part in sentence(capsys, "export", str(tiny_model), "--output", str(tmp_path / "b"), *options)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_file_with_the_wrong_columns_names_the_line(
    tiny_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("score\tsentence1\tsentence2\n1\ta\tb\n2\tonly one\n")
    said = sentence(capsys, "export", str(tiny_model), "--output", str(tmp_path / "b"), "--eval", str(path))
    assert "line 3" in said


def test_an_output_that_holds_something_else_is_left_alone(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "b"
    output.mkdir()
    (output / "mine.txt").write_text("precious")
    for options in ((), ("--force",)):
        assert "not empty" in sentence(capsys, "export", str(tiny_model), "--output", str(output), *options)
    assert (output / "mine.txt").read_text() == "precious"


def test_an_output_below_a_file(tiny_model: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in sentence(capsys, "export", str(tiny_model), "--output", str(tmp_path / "file" / "b"))


def test_a_bundle_is_replaced_only_when_asked(bundle_copy: Path, tiny_model: Path, capsys: Capture) -> None:
    before = open_bundle(bundle_copy).manifest_sha256
    assert "--force" in sentence(capsys, "export", str(tiny_model), "--output", str(bundle_copy))
    assert open_bundle(bundle_copy, verify=True).manifest_sha256 == before


# Bundles


def edit_manifest(bundle: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = bundle / "onnxpress.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def missing_file(bundle: Path) -> None:
    (bundle / "fp32" / "model.onnx").unlink()


def resized_file(bundle: Path) -> None:
    with (bundle / "tokenizer.json").open("a") as file:
        file.write(" ")


def newer_schema(bundle: Path) -> None:
    edit_manifest(bundle, lambda manifest: manifest.update(schema_version=999))


def leaving_path(bundle: Path) -> None:
    def change(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, list)
        files[0]["path"] = "../elsewhere"

    edit_manifest(bundle, change)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (missing_file, "fp32/model.onnx"),
        (resized_file, "tokenizer.json"),
        (newer_schema, "999"),
        (leaving_path, "../elsewhere"),
        (lambda bundle: shutil.rmtree(bundle), "bundle"),
        (lambda bundle: (bundle / "onnxpress.json").unlink(), "onnxpress.json"),
        (lambda bundle: (bundle / "onnxpress.json").write_text("{"), "onnxpress.json"),
    ],
)
def test_a_damaged_bundle_is_refused(
    damage: Callable[[Path], None], part: str, bundle_copy: Path, capsys: Capture
) -> None:
    damage(bundle_copy)
    for command in ("inspect", "run", "report", "verify"):
        assert part in sentence(capsys, command, str(bundle_copy))
    with pytest.raises(InvalidBundleError):
        onnxpress.load(bundle_copy)


def test_a_changed_byte_is_found_when_asked(bundle_copy: Path, capsys: Capture) -> None:
    weights = bundle_copy / "fp32" / "model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    assert "fp32/model.onnx.data" in sentence(capsys, "inspect", str(bundle_copy), "--verify")
    with pytest.raises(InvalidBundleError, match=r"fp32/model\.onnx\.data"):
        onnxpress.load(bundle_copy, verify=True)


def test_external_data_that_leaves_the_folder_is_refused(bundle_copy: Path, capsys: Capture) -> None:
    """Sealed with matching size, so that only the look into the graph can find it."""
    path = bundle_copy / "fp32" / "model.onnx"
    content = path.read_bytes()
    assert content.count(b"model.onnx.data")
    path.write_bytes(content.replace(b"model.onnx.data", b"../../etc/paswd"))
    assert "../../etc/paswd" in sentence(capsys, "run", str(bundle_copy), "--variant", "fp32")


def test_a_variant_that_is_not_there(tiny_bundle: Path, capsys: Capture) -> None:
    said = sentence(capsys, "run", str(tiny_bundle), "--variant", "int4")
    assert "int4" in said
    assert "fp32" in said


# Texts


def run_on(data: bytes, bundle: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    return main(["run", str(bundle), *options])


def test_bad_lines_are_reported_and_the_others_answered(
    tiny_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = b"a" * (MAX_TEXT_CHARACTERS + 1)
    assert run_on(b"the cat\n\xff\xfe\n" + large + b"\nthe dog\n", tiny_bundle, monkeypatch) == 2
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [record["line"] for record in records] == [1, 2, 3, 4]
    assert ["embedding" in record for record in records] == [True, False, False, True]
    said = captured.err.splitlines()
    assert said[0].startswith("onnxpress: line 2: ")
    assert said[1].startswith("onnxpress: line 3: ")
    assert len(said[1]) < 200


def test_no_lines_at_all(tiny_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_on(b"", tiny_bundle, monkeypatch) == 2
    assert "no texts" in capsys.readouterr().err


def test_a_table_without_the_column(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "table.csv"
    table.write_text("title,body\na,b\n")
    assert "'text'" in sentence(capsys, "run", str(tiny_bundle), "--input", str(table))
