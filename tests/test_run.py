"""`onnxpress run` for every task: columns, options, records, and bad lines that take nothing from the others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from onnxpress.cli import main
from onnxpress.cli.answers import OPTIONS
from onnxpress.cli.writing import add_beam_arguments, add_writing_arguments
from tests.in_pytorch import save_bert, serve_in_pytorch

NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}


class Runner:
    """The command over models in PyTorch, which are made once."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._patch = patch
        self._capture = capture
        self.status = 0
        self.errors = ""

    def __call__(self, task: str, text: str, *options: str, suffix: str = "txt") -> list[dict[str, Any]]:
        self._patch.setattr("onnxpress.runtime.model.load", lambda *arguments: MODELS[task])
        path = self._folder / f"input.{suffix}"
        path.write_text(text, encoding="utf-8")
        self.status = main(["run", "bundle", "--input", str(path), *options])
        captured = self._capture.readouterr()
        self.errors = captured.err
        return [json.loads(line) for line in captured.out.splitlines()]


MODELS: dict[str, Any] = {}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "text-classification": ("SequenceClassification", {"id2label": NLI}),
    "text-ranking": ("SequenceClassification", {"id2label": {0: "LABEL_0"}}),
    "token-classification": ("TokenClassification", {"id2label": TAGS}),
    "question-answering": ("QuestionAnswering", {}),
    "fill-mask": ("MaskedLM", {}),
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    for task, (kind, changes) in KINDS.items():
        folder = save_bert(tmp_path_factory.mktemp("models") / task, kind, **changes)
        MODELS[task] = serve_in_pytorch(folder, task)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, monkeypatch, capsys)


def test_texts_are_classified(run: Runner) -> None:
    records = run("text-classification", "the dog\nmy order\n")
    assert [record["line"] for record in records] == [1, 2]
    for record, text in zip(records, ("the dog", "my order"), strict=True):
        expected = MODELS["text-classification"].classify(text)
        assert record["label"] == expected.label
        assert record["scores"] == pytest.approx(expected.scores, abs=1e-5)


def test_pairs_are_classified(run: Runner) -> None:
    (record,) = run("text-classification", "text,other\nthe dog,my order\n", "--pair-column", "other", suffix="csv")
    expected = MODELS["text-classification"].classify(("the dog", "my order"))
    assert record["score"] == pytest.approx(expected.score, abs=1e-5)


def test_labels_make_it_zero_shot(run: Runner) -> None:
    options = ("--labels", "cat, dog", "--hypothesis", "where is {}?", "--multi-label")
    (record,) = run("text-classification", "the order was sent\n", *options)
    model = MODELS["text-classification"]
    expected = model.zero_shot("the order was sent", ["cat", "dog"], hypothesis="where is {}?", multi_label=True)
    assert record["scores"] == pytest.approx(expected.scores, abs=1e-5)


def test_all_lines_are_ranked_for_one_query(run: Runner) -> None:
    lines = ["the dog", "my order", "where is the parcel"]
    records = run("text-ranking", "\n".join(lines), "--query", "where is it")
    expected = MODELS["text-ranking"].rank("where is it", lines)
    assert [record["rank"] for record in records] == [1, 2, 3]
    assert [record["text"] for record in records] == [entry.text for entry in expected]
    assert [record["line"] for record in records] == [entry.index + 1 for entry in expected]


def test_pairs_of_query_and_text_are_scored_in_order(run: Runner) -> None:
    rows = [{"query": "where", "text": "the dog"}, {"query": "my", "text": "the order"}]
    records = run("text-ranking", "\n".join(map(json.dumps, rows)), suffix="jsonl")
    expected = MODELS["text-ranking"].score([(row["query"], row["text"]) for row in rows])
    assert [record["score"] for record in records] == pytest.approx(expected.tolist(), abs=1e-5)


def test_entities_have_their_places(run: Runner) -> None:
    (record,) = run("token-classification", "the order was sent\n", "--strategy", "none")
    expected = MODELS["token-classification"].tag("the order was sent", strategy="none")
    assert [entity["start"] for entity in record["entities"]] == [entity.start for entity in expected]
    assert {"label", "score", "word", "text", "start", "end", "index"} == set(record["entities"][0])


@pytest.mark.parametrize("fixed", [True, False])
def test_questions_are_answered(run: Runner, fixed: bool) -> None:
    row = {"question": "where is my parcel?", "context": "the parcel was sent to the dog"}
    options = ("--query", row["question"]) if fixed else ()
    (record,) = run("question-answering", json.dumps(row), *options, suffix="jsonl")
    expected = MODELS["question-answering"].answer(row["question"], row["context"])
    assert (record["text"], record["start"]) == (expected.text, expected.start)


def test_a_line_without_a_gap_takes_nothing_from_the_others(run: Runner) -> None:
    records = run("fill-mask", "the [MASK] was sent\nno gap\n\nmy [MASK]\n", "--top-k", "2")
    assert run.status == 2
    assert [len(record.get("fillings", ())) for record in records] == [2, 0, 0, 2]
    assert records[1]["error"] == "has no [MASK]; put one where a word is wanted"
    assert "line 2: has no [MASK]" in run.errors
    assert "line 3: the text is empty" in run.errors


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("fill-mask", ("--labels", "a,b"), "--labels is for text-classification and zero-shot-classification; this"),
        ("text-classification", ("--query", "a"), "--query is for text-ranking and question-answering; this bundle"),
        ("text-classification", ("--multi-label",), "need --labels"),
        ("text-ranking", (), "a plain line has no second text 'query'; give CSV, TSV or JSONL"),
        ("token-classification", ("--strategy", "best"), "'best'"),
        ("text-classification", ("--top-k", "3"), "--top-k is for fill-mask"),
        ("text-classification", ("--top-k", "0"), "--top-k is for fill-mask"),
        ("text-classification", ("--temperature", "0"), "--temperature is for text-generation"),
        ("token-classification", ("--prompt-lookup", "4"), "--prompt-lookup is for text-generation"),
    ],
)
def test_options_that_do_not_fit_are_refused(run: Runner, task: str, options: tuple[str, ...], message: str) -> None:
    run(task, "the dog\n", *options)
    assert run.status == 2
    assert message in run.errors
    assert "Traceback" not in run.errors


def test_every_option_of_writing_is_refused_where_nothing_is_written() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_writing_arguments(parser)
    add_beam_arguments(parser)
    for option in vars(parser.parse_args([])):
        assert OPTIONS.get(option) == ("text-generation",), option
