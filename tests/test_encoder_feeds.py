"""What encoders are calibrated on: given texts, those of the evaluation, or random tokens; as graph inputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

import onnxpress
from onnxpress.cli import main
from onnxpress.exporter import ExportConfig, encoder_feeds, page
from onnxpress.exporter.calibration import SYNTHETIC
from onnxpress.exporter.calibration import encoder_feeds as feeds_of
from onnxpress.exporter.calibration_files import read_calibration
from onnxpress.exporter.synthetic import Sequence, synthetic_sequences, whole_tokens
from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.data.options import DataOptions
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import read_evaluation
from onnxpress.runtime.manifest import MaskSettings, TaskSettings, Tensor, TokenizerSettings
from tests import tokenizer_styles as styles
from tests.models import make_model, make_tokenizer, save_decoder

WORDS = ["the", "order", "was", "not", "sent", ",", "where", "is", "my", "cat", "?", "a", "parcel", "and", "dog"]


def texts(count: int) -> list[str]:
    """Of one to twenty words."""
    return [
        " ".join(WORDS[(index * 7 + place) % len(WORDS)] for place in range(1 + index % 20)) for index in range(count)
    ]


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


# Reading


def read(path: Path, task: str = "feature-extraction", **options: Any) -> tuple[tuple[str, ...], ...]:
    return read_calibration([path], task, DataOptions(**options), ("negative", "positive")).inputs


def test_an_encoder_reads_lines_of_a_file_and_files_of_a_folder(tmp_path: Path) -> None:
    assert read(write(tmp_path / "f.txt", "one\n\ntwo words\n")) == (("one",), ("two words",))
    write(tmp_path / "d" / "b.txt", "one\ntext")
    write(tmp_path / "d" / "a" / "c.txt", "another")
    assert read(tmp_path / "d") == (("another",), ("one\ntext",))
    assert read(tmp_path / "d", "text-generation") == (("another",), ("one\ntext",))


@pytest.mark.parametrize(
    ("task", "name", "content", "expected"),
    [
        ("text-classification", "f.tsv", "good\t1\nbad\t0\n", (("good",), ("bad",))),
        ("text-classification", "f.csv", "review,stars\ngood,5\n", (("good",),)),
        ("text-classification", "f.jsonl", '{"premise": "a", "hypothesis": "b"}\n"c"\n', (("a", "b"), ("c",))),
        ("feature-extraction", "f.tsv", "1\ta\tb\n2\tc\td\n", (("a",), ("b",), ("c",), ("d",))),
        ("text-ranking", "f.jsonl", '{"query": "q", "positive": ["a", "b"]}\n', (("q", "a"), ("q", "b"))),
        ("question-answering", "f.jsonl", '{"question": "q", "context": "c"}\n', (("q", "c"),)),
        ("token-classification", "f.jsonl", '{"tokens": ["Ann", "sings"]}\n', (("Ann sings",),)),
        ("token-classification", "f.txt", "\nAnn positive\nsings negative\n", (("Ann sings",),)),
        ("token-classification", "f.txt", "Ann sings\n", (("Ann sings",),)),
        ("feature-extraction", "f.jsonl", '{"sentence1": "a", "sentence2": "b"}\n', (("a",), ("b",))),
    ],
)  # fmt: skip
def test_files_of_examples_give_what_a_model_reads_of_them(
    tmp_path: Path, task: str, name: str, content: str, expected: tuple[tuple[str, ...], ...]
) -> None:
    assert read(write(tmp_path / name, content), task) == expected


def test_columns_and_samples_of_calibration_data(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.csv",
        "".join(f"{number},text {number},x\n" if number else "id,body,text\n" for number in range(41)),
    )
    assert read(path, columns={"text": "body"})[:2] == (("text 1",), ("text 2",))
    assert read(path, "text-ranking", columns={"text": "body", "text_pair": "text"})[0] == ("text 1", "x")
    found = read_calibration([path], "fill-mask", DataOptions(columns={"text": "body"}, samples=8))
    assert (len(found.inputs), found.rows) == (8, 40)
    for columns, message in (
        ({"label": "body"}, "'label' is no column of calibration data, which has: text, text_pair"),
        ({"text": "none"}, "f.csv, line 1: no column 'none', which is to be text; there are: id, body, text"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            read(path, columns=columns)


def test_all_rows_of_a_table_without_a_header_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.runtime.evaluation.drawing.EVALUATION_SAMPLES", 10)
    path = write(tmp_path / "f.tsv", "".join(f"text {number}\tpositive\n" for number in range(30)))
    found = read_calibration([path], "text-classification", labels=("negative", "positive"))
    assert (len(found.inputs), found.rows) == (10, 30)


def test_a_table_that_is_neither_texts_nor_examples_says_both(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "id,body\n1,good\n")
    with pytest.raises(InvalidInputError, match=r"no column text \(it begins with: id, body\); --calibration-columns"):
        read(path, "text-classification")
    for files in ([], ["x.csv"]):
        for name in files:
            write(tmp_path / "d" / name, "")
        (tmp_path / "d").mkdir(exist_ok=True)
        with pytest.raises(InvalidInputError, match=r"the calibration folder .* (is empty|holds neither)"):
            read(tmp_path / "d")


def test_the_split_to_calibrate_on_is_not_the_one_to_evaluate_on(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    splits = {name: datasets.Dataset.from_dict({"text": [f"of {name}"]}) for name in ("validation", "train")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    datasets.enable_progress_bars()
    found = read_calibration([tmp_path / "d"], "feature-extraction")
    assert (found.inputs, found.files) == ((("of train",),), ("d/train",))


# Batches

INPUTS = tuple(
    Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
)


def settings(task: str = "feature-extraction", side: Any = "right", mask: MaskSettings | None = None) -> TaskSettings:
    return TaskSettings(task, TokenizerSettings("tokenizer.json", 48, 9, side, 3), None, None, mask)


def sequences(*lengths: int) -> list[Any]:
    return [
        Sequence(list(range(1, length + 1)), [0] * (length // 2) + [1] * (length - length // 2)) for length in lengths
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_is_in_one_batch_and_padding_is_masked(side: str) -> None:
    lengths = [3, 40, 7, 48, 5, 5, 20, 1, 30] * 12
    rows = []
    for feeds in encoder_feeds.batches(sequences(*lengths), INPUTS, settings(side=side)):
        ids, mask, types = (feeds[tensor.name] for tensor in INPUTS)
        assert ids.dtype == mask.dtype == types.dtype == np.int64
        assert ids.shape == mask.shape == types.shape
        assert ids.size <= 512
        assert mask.mean() >= 0.75
        assert (ids[mask == 0] == 9).all()
        assert (types[mask == 0] == 3).all()
        assert (mask[:, -1 if side == "left" else 0] == 1).all()
        for row in range(len(ids)):
            kept = mask[row] == 1
            rows.append((ids[row][kept].tolist(), types[row][kept].tolist()))
    assert sorted(rows) == sorted((item.ids, item.type_ids) for item in sequences(*lengths))


def test_further_inputs_are_filled() -> None:
    inputs = (
        *INPUTS[:2],
        Tensor("pooling_mask", "int64", ("batch", "sequence")),
        Tensor("mask_positions", "int64", ("batch", "masks")),
    )
    (feeds,) = encoder_feeds.batches(sequences(5, 4), inputs, settings(side="left", mask=MaskSettings("[MASK]", 4)))
    assert feeds["pooling_mask"].tolist() == feeds["attention_mask"].tolist() == [[1] * 5, [0] + [1] * 4]
    assert feeds["mask_positions"].tolist() == [[3], [4]]


def test_long_sequences_are_fewer() -> None:
    found = encoder_feeds.within(sequences(*range(1, 101)), 500)
    assert sum(map(len, found)) <= 600
    assert [len(item) for item in (found[0], found[-1])] == [1, 100]


# Random tokens

STYLES = {
    "wordpiece": styles.wordpiece, "byte-level": styles.byte_level, "unigram": styles.unigram, "t5": styles.t5,
    "xlnet": styles.xlnet,
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("pairs", [False, True])
def test_random_sequences_look_like_those_of_texts(style: str, pairs: bool) -> None:
    tokenizer: transformers.PreTrainedTokenizerFast = STYLES[style]()
    backend = tokenizer.backend_tokenizer
    made = synthetic_sequences(backend, 40, 48, pairs)
    assert made == synthetic_sequences(backend, 40, 48, pairs)
    assert {len(item) for item in made} >= {48}
    assert sorted(len(item) for item in made)[20] < 24
    special = set(tokenizer.all_special_ids)
    real = backend.encode("a", "b") if pairs else backend.encode("a")
    around = [number for number in real.ids if number in special]
    for item in made:
        assert [number for number in item.ids if number in special] == around
        assert set(item.type_ids) == set(real.type_ids)
        assert len(item.ids) == len(item.type_ids)
    drawn = {number for item in made for number in item.ids} - special
    assert drawn <= set(whole_tokens(backend))
    assert len(drawn) > 0.8 * len(whole_tokens(backend))


def test_only_whole_tokens_are_drawn() -> None:
    model = tokenizers.models.WordPiece(
        {"[UNK]": 0, "[unused1]": 1, "cat": 2, "##s": 3, "<0x0A>": 4, "[CLS]": 5}, unk_token="[UNK]"
    )
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens(["[CLS]", "[UNK]"])
    assert whole_tokens(backend) == [2]


# A bundle's own


@pytest.fixture
def state_of(tiny_bundle: Path) -> Callable[..., Any]:
    manifest = open_bundle(tiny_bundle).manifest

    def make(**changes: Any) -> Any:
        task = TaskSettings(manifest.task, manifest.tokenizer, manifest.embedding, manifest.labels, manifest.mask)
        state = SimpleNamespace(
            config=ExportConfig(), facts=SimpleNamespace(settings=task, inputs=manifest.inputs), folder=tiny_bundle,
            calibration=None, evaluation=None, task=manifest.task, searches=False,
        )  # fmt: skip
        for name, value in changes.items():
            setattr(state, name, value)
        return state

    return make


def test_what_was_given_goes_before_the_evaluation_and_that_before_random_tokens(
    state_of: Callable[..., Any], tmp_path: Path
) -> None:
    given = read_calibration([write(tmp_path / "given.txt", "\n".join(texts(5)))], "feature-extraction")
    pairs = "".join(f"{index}\t{text}\tthe cat\n" for index, text in enumerate(texts(300)))
    evaluation = read_evaluation([write(tmp_path / "pairs.tsv", pairs)], "feature-extraction")
    feeds, facts = feeds_of(state_of(calibration=given, evaluation=evaluation))
    assert facts == {
        "source": "files", "files": ["given.txt"], "sha256": given.sha256, "samples": 5, "rows": 5,
        "tokens": sum(int(feed["attention_mask"].sum()) for feed in feeds),
    }  # fmt: skip
    feeds, facts = feeds_of(state_of(evaluation=evaluation))
    assert (facts["source"], facts["files"], facts["samples"], facts["rows"]) == ("evaluation", ["pairs.tsv"], 256, 600)
    assert sum(len(feed["input_ids"]) for feed in feeds) == 256
    assert feeds_of(state_of(), evaluation.subset(range(3)))[1]["samples"] == 6
    nothing = read_calibration(SYNTHETIC, "feature-extraction")
    for state in (state_of(), state_of(calibration=nothing, evaluation=evaluation)):
        feeds, facts = feeds_of(state)
        assert (facts["source"], facts["files"], facts["sha256"], facts["samples"]) == ("synthetic", [], None, 256)
        assert json.loads(json.dumps(facts)) == facts
    searched = feeds_of(state_of(evaluation=evaluation, searches=True))[1]
    assert searched["rows"] == 300  # the half that the result is checked on stays unseen
    few = feeds_of(state_of(config=ExportConfig(calibration_samples=9), evaluation=evaluation))[1]
    assert few["samples"] == 9


def test_given_texts_are_the_tokens_of_the_tokenizer(state_of: Callable[..., Any], tmp_path: Path) -> None:
    given = read_calibration([write(tmp_path / "given.txt", "where is my cat ?")], "feature-extraction")
    ((feed,), _) = feeds_of(state_of(calibration=given))
    assert feed["input_ids"].tolist() == [make_tokenizer()("where is my cat ?")["input_ids"]]


# The whole export


def test_an_export_uses_and_reports_what_was_given(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "given.jsonl", "".join(json.dumps({"body": text}) + "\n" for text in texts(30)))
    command = ["export", str(tiny_model), "--variants", "fp32,int8", "--measure", "none", "--int8-cosine", "0.9"]
    given = ["--calibration", str(path), "--calibration-columns", "text=body", "--calibration-samples", "20"]
    assert main([*command, "--output", str(tmp_path / "given"), *given]) == 0
    assert main([*command, "--output", str(tmp_path / "random"), "--calibration", "synthetic"]) == 0
    shown = capfd.readouterr()
    assert (shown.out + shown.err).replace("\n", " ").count("Calibrated on synthetic data: random tokens") == 1
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("given", "random"))
    assert first["calibration"]["files"] == ["given.jsonl"]
    assert (first["calibration"]["samples"], first["calibration"]["rows"]) == (20, 30)
    assert second["calibration"]["source"] == "synthetic"
    assert "20 of 30, drawn evenly" in page.render_report(first)
    assert "Calibrated on synthetic data" not in page.render_report(first)
    assert 'class="alert">Calibrated on synthetic data' in page.render_report(second)


def test_an_evaluation_that_was_cut_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", "bert", "text-classification")
    for index, text in enumerate(texts(40)):
        write(tmp_path / "d" / ("good", "bad")[index % 2] / f"{index}.txt", text)
    labels = "good=positive,bad=negative"
    command = ["export", str(model), "--variants", "fp32", "--measure", "none", "--output", str(tmp_path / "b")]
    assert main([*command, "--eval", str(tmp_path / "d"), "--eval-labels", labels, "--eval-samples", "25"]) == 0
    shown = capfd.readouterr()
    assert "accuracy on 25 of 40 examples" in shown.out + shown.err
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert {key: report["evaluation"][key] for key in ("files", "samples", "rows")} == {
        "files": ["d"], "samples": 25, "rows": 40,
    }  # fmt: skip
    assert "25 of 40, drawn evenly" in (tmp_path / "b" / "report.html").read_text()


def test_a_decoder_is_rounded_on_random_tokens_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.exporter.calibration.TOKENS", 2000)
    model = save_decoder(tmp_path / "model")
    thresholds = onnxpress.exporter.Thresholds(int4_rms=1.0)
    config = ExportConfig(measure="none", variants=("int4",), thresholds=thresholds, calibration="synthetic")
    report = onnxpress.export(model, tmp_path / "b", config).report
    found = report["calibration"]
    assert (found["source"], found["files"], found["rows"]) == ("synthetic", [], 21)  # rows of the 96 tokens it takes
    assert report["variants"][0]["passes"][-1]["summary"].endswith("rounded by GPTQ on 2,016 random tokens")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"evaluation_columns": {"text": "a"}}, "evaluation_columns says how evaluation data is read"),
        ({"evaluation_split": "test"}, "evaluation_split says how"),
        ({"calibration_columns": {"text": "a"}}, "calibration_columns says how files are read"),
        ({"calibration": "synthetic", "calibration_columns": {"text": "a"}}, "calibration_columns says how"),
        ({"calibration": "synthetic", "variants": ("fp32", "fp16")}, "calibration is for int8.*: fp32, fp16"),
    ],
)  # fmt: skip
def test_options_without_what_they_are_for_are_refused(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    config = dataclasses.replace(ExportConfig(measure="none"), **options)
    with pytest.raises(InvalidInputError, match=sentence):
        onnxpress.export(tiny_model, tmp_path / "b", config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--eval-samples", "0"], "0 samples are asked for"),
        (["--calibration-samples", "-3"], "-3 samples are asked for"),
        (["--eval-columns", "text"], "--eval-columns has 'text'; give pairs"),
        (["--calibration", "synthetic", "--calibration", "a.txt"], "takes random tokens in place of files"),
    ],
)
def test_the_command_refuses_values_at_once(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["export", str(tiny_model), "--output", str(tmp_path / "b"), *options]) == 2
    assert sentence in capfd.readouterr().err.replace("\n", " ")
