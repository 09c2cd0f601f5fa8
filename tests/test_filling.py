"""Fill-mask against transformers' own pipeline, with the same PyTorch model behind both."""

from __future__ import annotations

from typing import Any

import pytest

from onnxpress.runtime.errors import InvalidInputError
from tests.in_pytorch import pipeline, save_bert, serve_in_pytorch
from tests.models import VOCABULARY

TEXTS = [
    "the [MASK] was sent",
    "[MASK]",
    "[MASK] [MASK]",
    "where is [MASK] parcel, not my [MASK]?",
    "订单 [MASK] 🙂",
    "the cat[MASK]dog",
    "[CLS] the [MASK] [SEP] dog",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = save_bert(tmp_path_factory.mktemp("filler") / "model", "MaskedLM")
    return serve_in_pytorch(folder, "fill-mask"), pipeline("fill-mask", folder)


def same(found: list[Any], expected: list[dict[str, Any]]) -> None:
    assert [entry.token_id for entry in found] == [entry["token"] for entry in expected]
    assert [entry.token for entry in found] == [entry["token_str"] for entry in expected]
    assert [entry.text for entry in found] == [entry["sequence"] for entry in expected]
    assert [entry.score for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-6)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("top_k", [1, 5, len(VOCABULARY)])
def test_proposals_are_those_of_the_pipeline(models: tuple[Any, Any], text: str, top_k: int) -> None:
    ours, theirs = models
    found, expected = ours.fill(text, top_k=top_k), theirs(text, top_k=top_k)
    if text.count("[MASK]") == 1:
        same(found, expected)
    else:
        assert len(found) == len(expected) == text.count("[MASK]")
        for gap, other in zip(found, expected, strict=True):
            same(gap, other)


def test_many_texts_come_back_in_order(models: tuple[Any, Any]) -> None:
    ours, _ = models
    flat = [entry if isinstance(entry, list) else [entry] for text in ours.fill(TEXTS, top_k=2) for entry in text]
    alone = [entry if isinstance(entry, list) else [entry] for text in TEXTS for entry in ours.fill(text, top_k=2)]
    assert [entry[0].text for entry in flat] == [entry[0].text for entry in alone]
    assert ours.fill([]) == []


def test_targets_are_the_only_proposals(models: tuple[Any, Any]) -> None:
    ours, theirs = models
    same(ours.fill(TEXTS[0], targets=["cat", "dog"]), theirs(TEXTS[0], targets=["cat", "dog"]))


def test_more_proposals_than_tokens_are_all_tokens(models: tuple[Any, Any]) -> None:
    ours, _ = models
    assert len(ours.fill(TEXTS[0], top_k=10_000)) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["the cat"], {}, r"text 0 has no \[MASK\]; put one"),
        (["[MASK]", "dog " * 80 + "[MASK]"], {}, r"text 1 has no \[MASK\] within the 64 tokens"),
        (["[MASK]"], {"top_k": 0}, "top_k is 0"),
        (["[MASK]"], {"targets": []}, "at least one token"),
        (["[MASK]"], {"targets": ["cats"]}, "'cats' is not one token"),
        ([("[MASK]", "b")], {}, "text 0 is of type tuple"),
    ],
)
def test_what_cannot_be_filled_is_refused(models: tuple[Any, Any], texts: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        models[0].fill(texts, **options)


def test_a_target_is_one_token_or_none(models: tuple[Any, Any]) -> None:
    ours, _ = models
    assert ours.token_id_of("cat") == VOCABULARY.index("cat")
    assert ours.token_id_of("cats") is None
    assert ours.mask_token == "[MASK]"
