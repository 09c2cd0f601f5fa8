"""Calibration of decoders from files to the report: what is read, what is refused, and that it changes int4 alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxpress
from onnxpress.cli import main
from onnxpress.exporter import ExportConfig, Thresholds, calibration
from onnxpress.exporter.calibration import Calibration, PrefillFeeds, calibration_rows
from onnxpress.exporter.calibration_files import read_calibration
from onnxpress.quantize.graphs import load_graph
from onnxpress.quantize.weight_only import WeightOnlyConfig
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.hardware import int4_blocks
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_graph import TinyDecoder
from tests.models import make_tokenizer, save_decoder

TEXTS = ["the order was not sent", "where is my cat ?", "the parcel and the dog"]
# Random weights of this size lose half of what they say in 4 bits; trained ones a hundredth.
THRESHOLDS = Thresholds(int4_rms=1.0)


def read(paths: list[Path]) -> Calibration:
    return read_calibration(paths, "text-generation")


def test_every_row_of_a_table_and_every_plain_file_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "c.csv").write_text('id,text\n1,"a, b"\n')
    (tmp_path / "d.tsv").write_text("text\tid\nc\t1\n")
    found = read([tmp_path / name for name in ("a.txt", "b.jsonl", "c.csv", "d.tsv")])
    assert found.texts == ("one\ntwo\n", *TEXTS, "a, b", "c")
    assert found.files == ("a.txt", "b.jsonl", "c.csv", "d.tsv")


def test_the_hash_is_of_the_texts_and_where_they_end(tmp_path: Path) -> None:
    hashes = set()
    for number, lines in enumerate((["a", "b"], ["ab"], ["b", "a"])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        hashes.add(read([path]).sha256)
    assert len(hashes) == 3
    assert read([tmp_path / "0.jsonl"]).sha256 in hashes


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b" \n", "has no text in it"),
        ("a.jsonl", b"", "has no text in it"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"body": "b"}\n',
            r"a.jsonl, line 2: expected an object with the keys text .*; there are: body",
        ),
        (
            "a.csv",
            b"id,body\n1,b\n",
            r"a.csv, line 1: expected a header with text .* found 2 columns beginning with 'id'",
        ),
        ("a.txt", b"a\n\xff\n", "a.txt, line 2: not UTF-8"),
        ("a.txt", None, "the calibration file .*a.txt cannot be read: No such file"),
        ("a.jsonl", None, "the calibration file .*a.jsonl cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=sentence):
        read([tmp_path / name])


def test_windows_lie_evenly_over_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make_tokenizer().backend_tokenizer
    words = [backend.id_to_token(number) for number in range(20, 30)]
    text = " ".join(words[number // 40 % 10] for number in range(400))
    whole = calibration_rows([text, text], backend, context=40)
    assert [len(row) for row in whole] == [40] * 20
    monkeypatch.setattr(calibration, "TOKENS", 160)
    some = calibration_rows([text, text], backend, context=40)
    assert some == [whole[0], whole[6], whole[13], whole[19]]


def test_the_inputs_of_a_row_give_the_logits_of_all_its_tokens(tmp_path: Path) -> None:
    decoder = TinyDecoder()
    path = decoder.save(tmp_path / "model.onnx")
    rows = [[5, 7, 9, 11], [3]]
    feeds = PrefillFeeds(path, rows)
    session = make_session(path, SessionSettings(), settings=ServingSettings(1))
    for feed, row in zip(feeds, rows, strict=True):
        found = session.run(["logits"], feed)[0][0]
        expected = [decoder.logits(row[:count]) for count in range(1, len(row) + 1)]
        np.testing.assert_allclose(found, expected, atol=1e-4)


# The whole export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(TEXTS * 30))
    return path


def press(model: Path, folder: Path, **options: Any) -> onnxpress.ExportResult:
    config = ExportConfig(measure="none", thresholds=THRESHOLDS, **options)
    return onnxpress.export(model, folder, config)


def weights(bundle: Path, variant: str) -> dict[str, Any]:
    graph = load_graph(bundle / variant / "model.onnx").graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_calibration_changes_int4_alone_and_the_report_says_how(model: Path, text: Path, tmp_path: Path) -> None:
    asked = {"variants": ("int8", "int4"), "symmetric": False}  # else the processor decides
    plain = press(model, tmp_path / "plain", **asked)
    calibrated = press(model, tmp_path / "calibrated", **asked, calibration=(text,))
    for variant, same in (("int8", True), ("int4", False)):
        before, after = weights(plain.folder, variant), weights(calibrated.folder, variant)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before) == same
    assert plain.report["calibration"] is None
    tokens = make_tokenizer().backend_tokenizer.encode(text.read_text(), add_special_tokens=False).ids
    assert calibrated.report["calibration"] == {
        "source": "files",
        "files": ["text.txt"],
        "sha256": read([text]).sha256,
        "samples": 1,
        "rows": 1,
        "tokens": len(tokens),
    }
    summaries = [variant["passes"][-1]["summary"] for variant in calibrated.report["variants"]]
    assert summaries[0].endswith("rounded without data")
    assert summaries[1].endswith(f"rounded by GPTQ on {len(tokens)} tokens of calibration text")
    assert "text.txt" in (calibrated.folder / "report.html").read_text()


def test_other_texts_and_options_are_not_answered_from_the_cache(model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "text.txt"
    other.write_text(" ".join(reversed((text.read_text() + " the").split())))
    asked: list[dict[str, Any]] = [
        {"symmetric": False}, {"calibration": (text,)}, {"calibration": (other,)}, {"block_size": 16},
        {"symmetric": True}, {"symmetric": True, "accuracy_level": 1}, {"symmetric": True, "head_bits": 8},
    ]  # fmt: skip
    made = []
    for number, options in enumerate(asked):
        folder = press(model, tmp_path / str(number), variants=("int4",), **options).folder / "int4"
        made.append(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))
    assert len(set(made)) == len(made)


def test_a_text_that_is_too_short_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(TEXTS[0])
    with pytest.raises(InvalidInputError, match=r"calibration on 5 tokens, but a product has .* give more text"):
        press(model, tmp_path / "b", variants=("int4",), calibration=(tmp_path / "short.txt",))
    assert not (tmp_path / "b").exists()


def test_the_command_takes_the_options(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[ExportConfig] = []

    def stop(model: str, output: str, config: ExportConfig, **_: Any) -> None:
        taken.append(config)
        raise InvalidInputError("enough")

    monkeypatch.setattr(onnxpress, "export", stop)
    command = ["export", str(model), "--output", str(tmp_path / "b"), "--calibration", str(text), "--block-size", "16"]
    assert main([*command, "--no-symmetric", "--accuracy-level", "1", "--head-bits", "8"]) == 2
    assert main(["export", str(model), "--output", str(tmp_path / "b")]) == 2
    given, plain = taken
    assert given.calibration == (text,)
    largest, _ = int4_blocks(describe_machine())
    assert given.weight_only(4) == WeightOnlyConfig(
        bits=4, block_size=16, largest_block=largest, symmetric=False, accuracy_level=1, head_bits=8
    )
    assert plain.weight_only(8) == WeightOnlyConfig(bits=8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"block_size": 48}, "block_size 48: give one of None, 16, 32, 64, 128"),
        ({"accuracy_level": 2}, "accuracy_level 2"),
        ({"head_bits": 3}, "head_bits 3"),
        ({"calibration": "a.txt"}, "calibration is 'a.txt'; give a tuple of paths, or 'synthetic'"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_at_once(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        ExportConfig(**options)


@pytest.mark.parametrize("options", [{"block_size": 32}, {"symmetric": False}, {"head_bits": 8}])
def test_encoders_refuse_what_is_for_decoders(tiny_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (name,) = options
    config = dataclasses.replace(ExportConfig(measure="none"), **options)
    with pytest.raises(InvalidInputError, match=f"{name} is for int4; the variants of this model"):
        onnxpress.export(tiny_model, tmp_path / "b", config)


def test_calibration_without_a_variant_that_uses_it_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="calibration is for int4, not for the variants asked for: fp32"):
        press(model, tmp_path / "b", variants=("fp32",), calibration=(text,))
