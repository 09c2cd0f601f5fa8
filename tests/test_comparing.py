"""onnxpress compare: every task side by side, the rules of a gate, and outputs that stay what they are."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from onnxpress.cli import main
from onnxpress.exporter.comparing import checkpoint_side
from onnxpress.exporter.config import ExportConfig
from onnxpress.exporter.page.comparison import render_comparison
from onnxpress.runtime.comparing import Options, Side, bundle_side, check_sides, compare, comparison, parse_rules
from onnxpress.runtime.comparing.markdown import code, render_markdown
from onnxpress.runtime.comparing.rules import apply_rules
from onnxpress.runtime.comparing.summary import summary_lines
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import read_evaluation
from onnxpress.runtime.manifest import FileRecord, render_manifest
from onnxpress.runtime.measuring import Plan
from onnxpress.runtime.paths import MANIFEST_NAME, sha256_of
from tests.in_pytorch import save_bert
from tests.models import make_embedder
from tests.report_fixtures import HOSTILE
from tests.tiny_generator import TINY, make_bundle

OWN = Path(str(importlib.resources.files("onnxpress.models")))
QUIET = Options(measure="none", threads=1)
SENTIMENT = {0: "negative", 1: "positive"}
NLI = {0: "entailment", 1: "not_entailment"}
TAGS = dict(enumerate(("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")))
KINDS: dict[str, tuple[str, str, dict[str, Any], str | None]] = {
    "labels": ("text-classification", "SequenceClassification", {"id2label": SENTIMENT}, "sentiment.tsv"),
    "several": (
        "text-classification",
        "SequenceClassification",
        {"id2label": SENTIMENT, "problem_type": "multi_label_classification"},
        "sentiment.tsv",
    ),
    "numbers": ("text-classification", "SequenceClassification", {"id2label": {0: "LABEL_0"}}, None),
    "entailment": ("zero-shot-classification", "SequenceClassification", {"id2label": NLI}, "nli.tsv"),
    "entities": ("token-classification", "TokenClassification", {"id2label": TAGS}, "entities.conll"),
    "answers": ("question-answering", "QuestionAnswering", {}, "questions.jsonl"),
    "ranks": ("text-ranking", "SequenceClassification", {"id2label": {0: "LABEL_0"}}, "rankings.jsonl"),
    "gaps": ("fill-mask", "MaskedLM", {}, None),
}


def side_of(folder: Path, task: str) -> Side:
    return checkpoint_side(str(folder), ExportConfig(task=task))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Side]]:
    """Two sides of a kind, with other weights."""
    made: dict[str, list[Side]] = {}

    def get(kind: str) -> list[Side]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            if kind == "embeddings":
                folders = [make_embedder(folder / name, seed=seed) for seed, name in enumerate("ab")]
                made[kind] = [side_of(path, "feature-extraction") for path in folders]
            else:
                task, head, changes, _ = KINDS[kind]
                folders = [save_bert(folder / name, head, seed, **changes) for seed, name in enumerate("ab")]
                made[kind] = [side_of(path, task) for path in folders]
        return made[kind]

    return get


@pytest.mark.parametrize("kind", [*KINDS, "embeddings"])
def test_a_model_agrees_with_itself_and_not_with_another(kind: str, models: Callable[[str], list[Side]]) -> None:
    first, second = models(kind)
    document = compare([first, first, second], QUIET)
    _, same, other = document["sides"]
    assert document["evaluation"] is None
    assert same["agreement"] == pytest.approx(1, abs=1e-6)
    assert same["changed_answers"] == 0
    assert same["largest_divergence"] == pytest.approx(0, abs=1e-6)
    assert other["agreement"] < 0.999
    assert other["mean_divergence"] > 0
    assert 0 < len(other["examples"]) <= 10
    for change in other["examples"]:
        assert change["before"] != change["after"]
        assert change["right"] is None
        assert all(change["texts"])
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if KINDS[kind][3]), "embeddings"])
def test_accuracy_is_that_of_the_file_with_its_interval(kind: str, models: Callable[[str], list[Side]]) -> None:
    file = OWN / (KINDS[kind][3] or "") if kind in KINDS else OWN / "sentence_pairs.tsv"
    options = dataclasses.replace(QUIET, evaluation=(file,), examples=10_000)
    document = compare(models(kind), options)
    base, other = document["sides"]
    assert document["evaluation"]["files"] == [file.name]
    assert base["accuracy"] == base["metrics"][document["evaluation"]["metric"]]
    interval = other["accuracy_interval"]
    assert interval["difference"] == pytest.approx(other["accuracy"] - base["accuracy"], abs=1e-9)
    assert interval["low"] <= interval["difference"] <= interval["high"]
    assert other["changes"]["accuracy"] == pytest.approx(interval["difference"], abs=1e-9)
    assert len(other["examples"]) == other["changed_answers"]
    gains = [change["gain"] for change in other["examples"]]
    assert gains == sorted(gains)
    if kind != "embeddings":
        size = document["evaluation"]["samples"]
        assert 1 - other["changed_answers"] / size == pytest.approx(other["agreement"])
        assert sum(gains) / size * 100 == pytest.approx(interval["difference"], abs=1e-6) or kind == "entities"
    assert all(change["right"] for change in other["examples"])


def test_the_answer_that_was_lost_stands_first(models: Callable[[str], list[Side]]) -> None:
    file = OWN / "sentiment.tsv"
    document = compare(models("labels"), dataclasses.replace(QUIET, evaluation=(file,), examples=3))
    (first, *_) = document["sides"][1]["examples"]
    example: Any = read_evaluation([file], "text-classification", ("negative", "positive")).examples[first["index"]]
    assert (first["texts"], first["right"]) == (example.texts, example.gold)
    assert first["before"] == first["right"] != first["after"]
    assert len(document["sides"][1]["examples"]) == 3


def save_decoder(folder: Path, seed: int) -> Path:
    folder.mkdir()
    bundle = make_bundle(folder, dataclasses.replace(TINY, seed=seed) if seed else TINY)
    files = [
        FileRecord(name, (folder / name).stat().st_size, sha256_of(folder / name))
        for name in ("model.onnx", "tokenizer.json")
    ]
    manifest = dataclasses.replace(bundle.manifest, files=tuple(files))
    (folder / MANIFEST_NAME).write_text(render_manifest(manifest))
    return folder


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("decoders")
    return [save_decoder(folder / name, seed) for name, seed in (("a", 0), ("b", 9))]


def bundles(*names: Path | str) -> list[Side]:
    found = [bundle_side(str(name)) for name in names]
    assert all(found)
    return [side for side in found if side is not None]


def test_decoders_are_compared_by_perplexity_and_by_what_they_write(decoders: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(f"Line {number} of a text that goes on for {number} words or so." for number in range(60))
    )
    sides = bundles(decoders[0], decoders[0], decoders[1])
    document = compare(sides, dataclasses.replace(QUIET, evaluation=(text,)))
    base, same, other = document["sides"]
    assert (same["agreement"], same["changed_answers"]) == (1, 0)
    rise = 100 * (other["accuracy"] / base["accuracy"] - 1)
    assert other["accuracy_interval"]["difference"] == pytest.approx(rise)
    assert other["accuracy_interval"]["low"] <= rise <= other["accuracy_interval"]["high"]
    assert other["changes"]["accuracy"] == pytest.approx(-rise)
    assert 0 <= other["agreement"] < 1
    assert document["compared"] == 8
    assert other["examples"][0]["before"] != other["examples"][0]["after"]
    cells = next(line.cells for line in summary_lines(document) if line.title == "perplexity")
    assert cells[1][1] == "+0.00 % (+0.00 to +0.00)"
    assert cells[2][1].startswith(f"{rise:+.2f} %")
    without = compare(sides, QUIET)
    assert without["sides"][2]["agreement"] < 1
    assert without["sides"][2]["mean_divergence"] > 0


# What cannot be compared


def stub(name: str, task: str, labels: Any = None) -> Side:
    def never(*given: Any) -> Any:
        raise AssertionError("nothing is loaded before the sides are known to fit")

    return Side(name, "checkpoint", name, None, task, labels, 1, never, never, never)


def test_different_tasks_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"b is for fill-mask, a for text-ranking; only models for the same"):
        compare([stub("a", "text-ranking"), stub("b", "fill-mask")], QUIET)


def test_different_labels_are_refused(models: Callable[[str], list[Side]]) -> None:
    labels, several = models("labels")[0], models("several")[0]
    other = dataclasses.replace(labels.labels, names=("negative", "neutral")) if labels.labels else None
    with pytest.raises(InvalidInputError, match="only one of them has: neutral, positive"):
        compare([labels, dataclasses.replace(labels, labels=other)], QUIET)
    with pytest.raises(InvalidInputError, match=r"makes scores by sigmoid, .* by softmax"):
        compare([labels, several], QUIET)


def test_one_side_is_no_comparison() -> None:
    with pytest.raises(InvalidInputError, match="at least two"):
        compare([stub("a", "fill-mask")], QUIET)


def test_sides_have_names_of_their_own(decoders: list[Path], tmp_path: Path) -> None:
    twin = save_decoder(tmp_path / "a", 3)
    names = [side.name for side in check_sides(bundles(decoders[0], twin, twin))]
    assert names == [f"{decoders[0]}:fp32", f"{twin}:fp32", f"{twin}:fp32 (2)"]
    assert [side.name for side in check_sides(bundles(decoders[0], decoders[1]))] == ["a:fp32", "b:fp32"]


# Rules


@pytest.mark.parametrize(
    ("rule", "changes", "passed"),
    [
        ("accuracy<-0.5%", {"accuracy": -0.5}, True),
        ("accuracy<-0.5%", {"accuracy": -0.51}, False),
        ("accuracy < -0.5pt", {"accuracy": -0.6}, False),
        ("accuracy<-0.5%", {"accuracy": 2.0}, True),
        ("latency>+10%", {"latency": 10.01}, False),
        ("latency>10%", {"latency": 9.0}, True),
        ("throughput<-5%", {"throughput": -6.0}, False),
        ("memory>+.5%", {"memory": 0.6}, False),
        ("size>+0%", {"size": 0.0}, True),
        ("cold_start>+100%", {"cold_start": 101.0}, False),
        ("agreement<99%", {"agreement": 98.9}, False),
        ("agreement<99%", {"agreement": 99.1}, True),
        ("agreement<99%", {"agreement": None}, False),
    ],
)
def test_a_rule_fails_what_lies_beyond_it(rule: str, changes: dict[str, Any], passed: bool) -> None:
    (outcome,) = apply_rules(parse_rules(rule), "int8", changes, "points")
    assert outcome.passed is passed
    assert outcome.side == "int8"


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ("", "'' is no rule"),
        ("accuracy<-0.5%,", "'' is no rule"),
        ("accuracy", "'accuracy' is no rule"),
        ("accuracy<-0.5", "is no rule"),
        ("accuracy<=-0.5%", "is no rule"),
        ("accuracy<-0.5ms", "is no rule"),
        ("speed>+10%", "rules can be about: accuracy, agreement"),
        ("latency>+10pt", "points .*which only accuracy has"),
        ("agreement<-1%", "write it without a sign"),
        ("agreement<990%", "0 to 100"),
        ("latency>+10%", "leave out --measure none"),
        ("accuracy<-1%", "give --eval FILE"),
    ],
)
def test_a_bad_rule_is_status_2_before_anything_runs(
    rules: str,
    complaint: str,
    tiny_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(comparison, "_ask")
    command = ["compare", f"{tiny_bundle}:fp32", f"{tiny_bundle}:int8", "--measure", "none", "--fail-on", rules]
    assert main(command) == 2
    assert re.search(complaint, capsys.readouterr().err)


def test_perplexity_has_no_points(decoders: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text of some words")
    options = dataclasses.replace(QUIET, evaluation=(text,), rules=tuple(parse_rules("accuracy<-1pt")))
    with pytest.raises(InvalidInputError, match="perplexity has none"):
        compare(bundles(*decoders), options)


# The command


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that only show that they are made."""
    monkeypatch.setattr(comparison, "QUICK", Plan(1, 0.01, 0.01, (1, 8), 1))


@pytest.mark.usefixtures("soon")
def test_the_command_measures_writes_and_judges(
    tiny_bundle: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", f"{tiny_bundle}:fp32", f"{tiny_bundle}:int8", str(tiny_model), "--json", "--threads", "1"]
    command += ["--eval", str(OWN / "sentence_pairs.tsv"), "--fail-on", "size>+1000%,agreement<100%,latency>+1e9%"]
    assert main(command) == 2  # no such number
    command[-1] = "size>+1000%,agreement<100%,latency>+999999%"
    page, table = tmp_path / "page.html", tmp_path / "table.md"
    capsys.readouterr()
    assert main([*command, "--html", str(page), "--markdown", str(table)]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    failed = [outcome["side"] for outcome in document["rules"] if not outcome["passed"]]
    assert failed
    assert document["passed"] is False
    assert "int8 fails agreement<100%" in captured.err
    assert "fails size" not in captured.err
    assert [row["kind"] for row in document["sides"]] == ["bundle", "bundle", "checkpoint"]
    for row in document["sides"]:
        assert row["latency"][0]["p50_ms"] > 0
        assert row["throughput"]
        assert row["peak_memory_bytes"] > 0
        assert row["cold_start_seconds"] > 0
        assert row["size_bytes"] > 0
    base, _, other = document["sides"]
    assert other["changes"]["latency"] == pytest.approx(
        100 * (other["latency"][0]["p50_ms"] / base["latency"][0]["p50_ms"] - 1)
    )
    for text in (page.read_text(), table.read_text()):
        assert "tiny:int8" in text
        assert "agreement" in text
    assert "latency-chart" in page.read_text()


def test_without_rules_the_table_is_all(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"{tiny_bundle}:fp32", str(tiny_bundle), "--measure", "none", "--examples", "0"]) == 0
    shown = capsys.readouterr().out
    assert "tiny:fp32" in shown
    assert "agreement with the base" in shown
    assert "ms" not in shown


def test_a_page_that_cannot_be_written_is_refused_at_once(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(comparison, "_ask")
    sides = [f"{tiny_bundle}:fp32", f"{tiny_bundle}:int8"]
    assert main(["compare", *sides, "--html", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_data_is_read_as_the_options_say(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{number},the cat {number},a dog\n" for number in range(30))
    (tmp_path / "f.csv").write_text(f"closeness,one,other\n{rows}")
    given = ["--eval", str(tmp_path / "f.csv"), "--eval-columns", "score=closeness,sentence1=one,sentence2=other"]
    command = ["compare", f"{tiny_bundle}:fp32", str(tiny_bundle), "--measure", "none", "--json", "--quiet", *given]
    assert main([*command, "--eval-samples", "20"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluation"]
    assert (found["files"], found["samples"], found["rows"]) == (["f.csv"], 20, 30)
    assert main(["debug", str(tiny_bundle), "--variant", "int8", "--json", *given]) == 0


def test_bundles_are_compared_where_there_is_no_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "absent = ('torch', 'transformers', 'onnx', 'onnx_ir', 'optimum', 'huggingface_hub')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "from onnxpress.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "compare", f"{tiny_bundle}:fp32"]
    page = tmp_path / "page.html"
    options = ["--measure", "none", "--html", str(page), "--markdown", str(tmp_path / "table.md")]
    done = subprocess.run([*command, f"{tiny_bundle}:int8", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny:int8" in page.read_text()
    refused = subprocess.run([*command, "bundel", *options], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        "onnxpress: 'bundel' is no bundle, and any other model is run in PyTorch, which needs torch: check the "
        "name, or run pip install 'onnxpress[export]'"
    )


# Hostile texts


def hostile_document(models: Callable[[str], list[Side]]) -> dict[str, Any]:
    document = compare(models("labels"), dataclasses.replace(QUIET, evaluation=(OWN / "sentiment.tsv",)))
    texts = (HOSTILE, "| a | b |\n@someone #1 `code` ``two`` [x](http://x) \\| </details>", "`", "\x1b[2J\\")
    base, other = document["sides"]
    base["name"], other["name"] = f"a|{HOSTILE}", "b`|`\n# title"
    for change, text in zip(other["examples"], texts, strict=False):
        change |= {"texts": [text], "right": text, "before": text, "after": text}
    document["rules"] = [
        {"rule": "size>+1%", "metric": "size", "side": HOSTILE, "change": 2.0, "unit": "%", "passed": False}
    ]
    return document


def test_the_page_shows_hostile_texts_as_texts(models: Callable[[str], list[Side]]) -> None:
    page = render_comparison(hostile_document(models))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page
    assert page.count("<script>") == 1


def test_markdown_shows_hostile_texts_as_texts(models: Callable[[str], list[Side]]) -> None:
    text = render_markdown(hostile_document(models))
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {child.type for child in inline}
    assert kinds <= {"text", "code_inline", "softbreak", "html_inline"}
    markup = {child.content for child in inline if child.type == "html_inline"}
    assert markup <= {"<sub>", "</sub>"}
    blocks = "".join(token.content for token in tokens if token.type == "html_block")
    shown = " ".join(re.sub(r"\d+ of \d+|\d+", "N", blocks).split())
    assert shown == "<details> <summary>N changed answers</summary> </details>"
    assert [token.type for token in tokens].count("heading_open") == 1
    assert "http://x" not in "".join(child.content for child in inline if child.type == "text")
    rows = [token for token in tokens if token.type in ("tr_open", "td_open", "th_open")]
    widths = [
        sum(1 for token in row if token != "tr_open") for row in _split([token.type for token in rows], "tr_open")
    ]
    assert set(widths) == {3, 4}  # figures: a title and two sides; answers: text, right and two sides


def _split(items: list[str], mark: str) -> list[list[str]]:
    rows: list[list[str]] = []
    for item in items:
        if item == mark:
            rows.append([])
        rows[-1].append(item)
    return rows


@pytest.mark.parametrize("text", ["plain", "a|b", "`", "``", "a`b``c", "\\|", "a\\", " x ", "<b>&amp;"])
def test_a_code_span_in_a_table_is_the_text(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n|---|---|\n| {code(text)} | x |\n")
    (cell, _) = [token for token in tokens if token.type == "inline"][2:]
    assert [child.type for child in cell.children or ()] == ["code_inline"]
    assert (cell.children or [])[0].content == text.strip()


def test_the_terminal_gets_no_control_characters(
    models: Callable[[str], list[Side]], capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxpress.cli.comparison_table import show_comparison

    show_comparison(hostile_document(models))
    assert "\x1b" not in capsys.readouterr().out
