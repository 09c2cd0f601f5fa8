"""The models of examples/training.py have learned: they are right about sentences that they have not seen."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from examples.training import train_classifier, train_embedder, train_reranker
from tests.in_pytorch import serve_in_pytorch

pytestmark = pytest.mark.slow

TEMPLATES = {
    "parcel": (
        ["the {} is {}", "why is the {} {}", "my {} was {} again"],
        ["parcel", "delivery", "package"],
        ["late", "lost", "broken"],
        ["我的{}{}了", "为什么{}{}", "{}又{}了"],
        ["包裹", "快递", "包装"],
        ["迟到", "丢失", "坏"],
    ),
    "money": (
        ["the {} is {}", "when is my {} {}", "please have the {} {}"],
        ["refund", "invoice", "payment"],
        ["paid", "due", "returned"],
        ["我的{}何时{}", "请把{}{}", "{}要{}吗"],
        ["退款", "发票", "付款"],
        ["到账", "寄出", "退回"],
    ),
    "account": (
        ["the {} is {}", "can my {} be {}", "I want the {} {}"],
        ["password", "login", "profile"],
        ["changed", "locked", "deleted"],
        ["我的{}被{}", "如何把{}{}", "{}能{}吗"],
        ["密码", "账号", "头像"],
        ["修改", "锁定", "删除"],
    ),
}


def sentences(held_out: bool) -> dict[str, list[str]]:
    """By topic, in both languages; of each template's nine sentences the three of a diagonal are held out."""
    made: dict[str, list[str]] = {}
    for topic, parts in TEMPLATES.items():
        made[topic] = [
            template.format(nouns[n], states[s])
            for templates, nouns, states in (parts[:3], parts[3:])
            for (t, template), n, s in itertools.product(enumerate(templates), range(3), range(3))
            if ((n + s + t) % 3 == 0) == held_out
        ]
    return made


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_classifier_knows_its_labels(tmp_path: Path, multi_label: bool) -> None:
    model = serve_in_pytorch(
        train_classifier(tmp_path / "model", sentences(False), multi_label=multi_label), "text-classification"
    )
    for topic, texts in sentences(True).items():
        for text, found in zip(texts, model.classify(texts), strict=True):
            assert (found.label, found.score > 0.5) == (topic, True), text


def test_an_embedder_puts_texts_of_a_topic_together(tmp_path: Path) -> None:
    model = serve_in_pytorch(train_embedder(tmp_path / "model", sentences(False)), "feature-extraction")
    known, unseen = ({t: model.embed(texts) for t, texts in sentences(held).items()} for held in (False, True))
    for topic, vectors in unseen.items():
        nearness = {other: (vectors @ against.T).mean(-1) for other, against in known.items()}
        own = nearness.pop(topic)
        assert np.all(own > np.maximum(*nearness.values()) + 0.3), topic


def test_a_reranker_prefers_documents_of_the_topic(tmp_path: Path) -> None:
    model = serve_in_pytorch(train_reranker(tmp_path / "model", sentences(False)), "text-ranking")
    unseen = sentences(True)
    documents = [text for texts in unseen.values() for text in texts]
    for texts in unseen.values():
        best = model.rank(texts[0], documents, top_k=10)
        assert {entry.text for entry in best} <= set(texts), texts[0]
