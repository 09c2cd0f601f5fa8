"""Classification, zero-shot and ranking against transformers' pipelines and sentence-transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxpress.runtime.errors import InvalidInputError
from tests.in_pytorch import pipeline, save_bert, serve_in_pytorch

TEXTS = [
    "the order was not sent",
    "",
    "   ",
    "where is my parcel?",
    "订单没有寄出",
    "the 🙂 cat 👩‍👩‍👧‍👦",
    "e\u0301 combined",
    "[CLS] [SEP] [MASK] literally",
    "dog",
]
# Not (text, ""): transformers' tokenizers take an empty second text alone for none, but not in a batch.
PAIRS = [("the order was sent", "where is my order"), ("", "dog"), ("the cat, the dog", "订单")]
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


def make(folder: Path, name: str, **changes: Any) -> Path:
    return save_bert(folder / name, "SequenceClassification", **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("single label", {"id2label": LABELS}),
        ("multi label", {"id2label": LABELS, "problem_type": "multi_label_classification"}),
        ("regression", {"id2label": {0: "score"}, "problem_type": "regression"}),
        ("one label", {"id2label": {0: "toxic"}}),
    ],
)
def test_labels_and_scores_are_those_of_the_pipeline(folder: Path, name: str, changes: dict[str, Any]) -> None:
    model = make(folder, name, **changes)
    ours, theirs = serve_in_pytorch(model, "text-classification"), pipeline("text-classification", model, top_k=None)
    inputs: list[Any] = [*TEXTS, *PAIRS]
    as_dicts = [item if isinstance(item, str) else {"text": item[0], "text_pair": item[1]} for item in inputs]
    for item, found, expected in zip(inputs, ours.classify(inputs), theirs(as_dicts), strict=True):
        assert list(found.scores) == [entry["label"] for entry in expected], item
        assert list(found.scores.values()) == pytest.approx([entry["score"] for entry in expected], abs=1e-5), item
        assert found.label == expected[0]["label"]
        assert found.score == found.scores[found.label]
        assert ours.classify(item).label == found.label


def test_ties_keep_the_order_of_the_labels(folder: Path) -> None:
    path = make(folder, "ties", id2label=LABELS)
    import safetensors.torch

    weights = safetensors.torch.load_file(path / "model.safetensors")
    weights["classifier.weight"] = torch.zeros_like(weights["classifier.weight"])
    weights["classifier.bias"] = torch.tensor([0.5, 1.0, 1.0])
    safetensors.torch.save_file(weights, path / "model.safetensors", {"format": "pt"})
    found = serve_in_pytorch(path, "text-classification").classify("dog")
    (expected,) = pipeline("text-classification", path, top_k=None)(["dog"])
    assert list(found.scores) == [entry["label"] for entry in expected] == ["neutral", "positive", "negative"]


def test_long_texts_are_cut(folder: Path) -> None:
    path = make(folder, "long", id2label=LABELS)
    ours = serve_in_pytorch(path, "text-classification")
    theirs = pipeline("text-classification", path, truncation=True)
    long = "the cat was not the dog " * 60
    assert ours.classify(long).score == pytest.approx(theirs(long)[0]["score"], abs=1e-6)
    pair = theirs({"text": long, "text_pair": "where is my order"})
    assert ours.classify((long, "where is my order")).score == pytest.approx(pair["score"], abs=1e-6)


@pytest.mark.parametrize("names", [NLI, {0: "ENTAILMENT", 1: "not_entailment"}, {0: "neutral", 1: "Entailed", 2: "no"}])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("labels", [["dog", "cat", "order sent"], ["dog"], ["订单", "🙂"]])
def test_zero_shot_is_that_of_the_pipeline(
    folder: Path, names: dict[int, str], multi_label: bool, labels: list[str]
) -> None:
    path = make(folder, names[0], id2label=names, label2id={name: index for index, name in names.items()})
    ours, theirs = serve_in_pytorch(path, "zero-shot-classification"), pipeline("zero-shot-classification", path)
    long = "the cat was not the dog " * 60
    for hypothesis in ("This example is {}.", "where is {}?"):
        options = {"hypothesis_template": hypothesis, "multi_label": multi_label}
        for text in ("the order was not sent", "订单没有寄出", long):
            found = ours.zero_shot(text, labels, hypothesis=hypothesis, multi_label=multi_label)
            expected = theirs(text, labels, **options)
            assert list(found.scores) == expected["labels"]
            assert list(found.scores.values()) == pytest.approx(expected["scores"], abs=1e-6)
            assert found.label == expected["labels"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], []), "at least one text to choose from"),
        ((["a"], "dog"), "'dog'; give a list"),
        ((["a"], ["dog", "dog"]), "same text twice"),
        ((["a", ("b", "c")], ["dog"]), "text 1 is of type tuple"),
    ],
)
def test_what_zero_shot_cannot_use_is_refused(folder: Path, arguments: Any, message: str) -> None:
    model = serve_in_pytorch(make(folder, "nli", id2label=NLI), "text-classification")
    with pytest.raises(InvalidInputError, match=message):
        model.zero_shot(*arguments)


@pytest.mark.parametrize("hypothesis", ["no place", "{", "{a}", "{0.x}"])
def test_a_hypothesis_needs_a_place_for_the_label(folder: Path, hypothesis: str) -> None:
    model = serve_in_pytorch(make(folder, "nli2", id2label=NLI), "text-classification")
    with pytest.raises(InvalidInputError, match="the hypothesis"):
        model.zero_shot("a", ["dog"], hypothesis=hypothesis)


def test_zero_shot_needs_an_entailment_label(folder: Path) -> None:
    model = serve_in_pytorch(make(folder, "no nli", id2label=LABELS), "text-classification")
    with pytest.raises(InvalidInputError, match="this one has: negative, neutral, positive"):
        model.zero_shot("a", ["dog"])


@pytest.mark.parametrize(("key", "function"), [(None, "sigmoid"), ("torch.nn.modules.linear.Identity", "identity")])
def test_ranking_is_that_of_the_cross_encoder(folder: Path, key: str | None, function: str) -> None:
    import sentence_transformers

    changes = {} if key is None else {"sentence_transformers": {"activation_fn": key, "version": "6.2.0"}}
    path = make(folder, f"ranker {function}", id2label={0: "LABEL_0"}, **changes)
    ours = serve_in_pytorch(path, "text-ranking")
    assert ours.labels.function == function
    theirs = sentence_transformers.CrossEncoder(str(path), device="cpu", max_length=64)
    # Not "   ", which has the tokens of "": scores that are equal but for rounding have no order.
    documents = [*(text for text in TEXTS if text != "   "), "the cat was not the dog " * 60]
    query = "where is my order?"
    found = ours.rank(query, documents)
    expected = theirs.rank(query, documents, show_progress_bar=False)
    assert [entry.index for entry in found] == [entry["corpus_id"] for entry in expected]
    assert [entry.score for entry in found] == pytest.approx([float(entry["score"]) for entry in expected], abs=1e-5)
    assert [documents[entry.index] for entry in found] == [entry.text for entry in found]
    assert ours.rank(query, documents, top_k=2) == found[:2]
    scores = ours.score([(query, text) for text in documents])
    assert scores.dtype == np.float32
    assert scores[found[0].index] == pytest.approx(found[0].score)


def test_equal_documents_keep_their_order(folder: Path) -> None:
    model = serve_in_pytorch(make(folder, "equal", id2label={0: "LABEL_0"}), "text-ranking")
    ranked = model.rank("dog", ["cat", "order", "cat", "order"])
    by_text = {text: [entry.index for entry in ranked if entry.text == text] for text in ("cat", "order")}
    assert by_text == {"cat": [0, 2], "order": [1, 3]}
    assert model.rank("dog", []) == []


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("dog", "cat"), {}, "documents is one text"),
        (("dog", ["cat", 3]), {}, "text 1 is of type int"),
        ((None, ["cat"]), {}, "text 0 is of type NoneType"),
        (("dog", None), {}, "documents is of type NoneType; give a list of texts"),
        (("dog", ["cat"]), {"top_k": 0}, "top_k is 0"),
        (("dog", ["cat"]), {"top_k": True}, "top_k is True"),
    ],
)
def test_what_cannot_be_ranked_is_refused(folder: Path, arguments: Any, options: Any, message: str) -> None:
    model = serve_in_pytorch(make(folder, "refusing", id2label={0: "LABEL_0"}), "text-ranking")
    with pytest.raises(InvalidInputError, match=message):
        model.rank(*arguments, **options)


@pytest.mark.parametrize("window_tokens", [None, 20])
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_highest_scores_are_those_of_all_windows(folder: Path, problem: str, window_tokens: int | None) -> None:
    path = make(folder, f"windows {problem}", id2label=LABELS, problem_type=problem)
    ours = serve_in_pytorch(path, "text-classification")
    classify = pipeline("text-classification", path, top_k=None)
    words = [random.Random(seed).choice(("dog", "cat", "order", "not", "was", "?")) for seed in range(300)]
    texts = ["the order was not sent", " ".join(words), "dog", "DOG"]
    found = ours.highest_scores(texts, window_tokens=window_tokens)
    room = (window_tokens or 64) - 2
    step = room - ((window_tokens or 64) // 2 - 4)
    # Each word is a token.
    windows = [" ".join(words[start : start + room]) for start in range(0, len(words) - room + step, step)]
    assert windows[-1].endswith(" ".join(words[-3:]))
    for text, scores in zip(texts, found, strict=True):
        parts = windows if text is texts[1] else [text]
        expected = [{entry["label"]: entry["score"] for entry in row} for row in classify(parts)]
        assert list(scores) == list(LABELS.values())
        for label, score in scores.items():
            assert score == pytest.approx(max(row[label] for row in expected), abs=1e-5)
    assert ours.highest_scores([]) == []
    with pytest.raises(InvalidInputError, match="window_tokens is 4"):
        ours.highest_scores(texts, window_tokens=4)
    with pytest.raises(InvalidInputError, match="text 1 is of type tuple"):
        ours.highest_scores(["a", ("b", "c")])
    assert len(ours.highest_scores("dog")) == 1
    for call in (ours.highest_scores, ours.classify):
        with pytest.raises(InvalidInputError, match="texts is of type NoneType; give a str or a list of them"):
            call(None)
