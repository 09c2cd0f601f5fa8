"""Question answering: the answers of transformers' pipeline, and what it leaves open."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from onnxpress.runtime.encoder import Encoder, FloatArray
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TaskSettings, Tensor, TokenizerSettings
from onnxpress.runtime.tasks.answering import Reader
from onnxpress.runtime.tasks.spans import Answer, Window, best_answers, widen_to_words
from onnxpress.runtime.tokenizer import Tokenizer
from tests.data.make_question_answering import (
    GOLDEN,
    KINDS,
    POSITIONS,
    TEXTS,
    cases,
    make_model,
    make_tokenizer,
)

Compute = Callable[[dict[str, Any]], Sequence[FloatArray]]
OUTPUTS = tuple(Tensor(name, "float32", ("batch", "sequence")) for name in ("start_logits", "end_logits"))


class CountingGraph:
    """What an `Encoder` runs: a function of its inputs, on batches of some rows."""

    workers = 1

    def __init__(self, compute: Compute, batch: int) -> None:
        self.compute = compute
        self.batch = batch
        self.rows: list[int] = []

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        return [order[first : first + self.batch] for first in range(0, len(order), self.batch)]

    def run(self, feeds: dict[str, Any], alone: bool) -> list[FloatArray]:
        self.rows.append(len(feeds["input_ids"]))
        return list(self.compute(feeds))


def make_reader(kind: str, compute: Compute, batch: int = 8) -> tuple[Reader, CountingGraph]:
    """A reader with the tokenizer of `kind`."""
    bert = KINDS[kind].tokenizer == "wordpiece"
    settings = TokenizerSettings("tokenizer.json", POSITIONS, 0 if bert else 1, KINDS[kind].padding_side, 0)
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(KINDS[kind]).save(f"{folder}/tokenizer.json")
        tokenizer = Tokenizer(Path(folder, "tokenizer.json"), settings)
    names = ("input_ids", "attention_mask", "token_type_ids") if bert else ("input_ids", "attention_mask")
    inputs = tuple(Tensor(name, "int64", ("batch", "sequence")) for name in names)
    graph = CountingGraph(compute, batch)
    encoder = Encoder(graph, settings, inputs, OUTPUTS)
    return Reader(encoder, tokenizer, TaskSettings("question-answering", settings, None, None, None)), graph


@functools.cache
def random_reader(kind: str) -> Reader:
    """The reader with the random model of `kind` in PyTorch."""
    model = make_model(KINDS[kind])

    def compute(feeds: dict[str, Any]) -> Sequence[FloatArray]:
        with torch.inference_mode():
            found = model(**{name: torch.from_numpy(values) for name, values in feeds.items()})
        return found.start_logits.numpy(), found.end_logits.numpy()

    # Padding on the left would move BERT's positions. Models that are padded there have relative ones.
    return make_reader(kind, compute, batch=1 if KINDS[kind].padding_side == "left" else 8)[0]


def pointing_reader(places: dict[str, float]) -> tuple[Reader, CountingGraph]:
    """A BERT reader whose start and end logits are those of `places` at these tokens, and 0 at all others."""
    ids = {make_tokenizer(KINDS["bert"]).token_to_id(token): logit for token, logit in places.items()}

    def compute(feeds: dict[str, Any]) -> Sequence[FloatArray]:
        logits = np.vectorize(lambda token: ids.get(token, 0.0))(feeds["input_ids"]).astype(np.float32)
        return logits, logits

    return make_reader("bert", compute)


def check(context: str, answers: Sequence[Answer], case: Any = None) -> None:
    for answer in answers:
        assert 0 <= answer.start <= answer.end <= len(context), case
        assert answer.text == context[answer.start : answer.end], case


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_pipeline(kind: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[kind]
    of_kind = [case for case in cases() if case.kind == kind]
    assert {case.name for case in of_kind} == set(golden)
    for case in of_kind:
        expected = golden[case.name]
        found = random_reader(kind).answer(case.question, case.context, **{"top_k": 1, **case.options})
        check(case.context, found, case)
        none = [one.score for one in found if not one.text]
        assert none in ([], [found[0].no_answer_score]), case
        assert [[one.text, one.start, one.end] for one in found] == [row[:3] for row in expected], case
        assert [one.score for one in found] == pytest.approx([row[3] for row in expected], rel=1e-5, abs=1e-9), case


def test_the_inputs_have_what_makes_them_awkward() -> None:
    """The golden answers would be worth little if all contexts fitted and no answer never won."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for kind in ("bert", "context first"):
        ranks = {next((rank for rank, row in enumerate(rows) if not row[0]), None) for rows in golden[kind].values()}
        assert {None, 0, 1, 2} <= ranks
    reader, graph = make_reader("bert", lambda feeds: [feeds["input_ids"].astype(np.float32)] * 2)
    for case in cases():
        if case.kind == "bert" and case.name in ("full length, default windows", "many words, windows"):
            reader.answer(case.question, case.context, **case.options)
            assert sum(graph.rows) >= 3
            graph.rows.clear()


def test_lists_give_what_single_calls_give_from_one_run_of_the_model() -> None:
    questions, contexts = [list(texts) for texts in zip(*TEXTS.values(), strict=True)]
    reader = random_reader("bert")
    options: dict[str, Any] = {"window_tokens": 60, "stride": 7}
    best = reader.answer(questions, contexts, **options)
    several = reader.answer(questions, contexts, top_k=3, **options)
    for question, context, one, many in zip(questions, contexts, best, several, strict=True):
        assert one.score == pytest.approx(reader.answer(question, context, **options).score, rel=1e-5)
        alone = reader.answer(question, context, top_k=3, **options)
        assert [(a.start, a.end) for a in many] == [(a.start, a.end) for a in alone]

    counting, graph = make_reader("bert", lambda feeds: [feeds["input_ids"].astype(np.float32)] * 2)
    counting.answer(questions, contexts, **options)
    assert sum(graph.rows) > len(questions)
    assert all(rows == 8 for rows in graph.rows[:-1])  # full batches, across texts


def test_one_context_serves_many_questions() -> None:
    reader = random_reader("roberta")
    context = TEXTS["two sentences"][1]
    questions = ["where?", "who is it", "?"]
    found = reader.answer(questions, context, top_k=2)
    assert [[a.start for a in one] for one in found] == [
        [a.start for a in one] for one in reader.answer(questions, [context] * 3, top_k=2)
    ]
    assert reader.answer(iter(questions), context)[2].start == found[2][0].start
    assert reader.answer([], context) == []
    assert reader.answer([], [], top_k=2) == []


def test_tied_spans_are_ranked_by_start_and_then_the_shorter_first() -> None:
    reader, _ = pointing_reader({})
    found = reader.answer("is", "a b c", top_k=9, align_to_words=False)
    assert [one.text for one in found] == ["a", "a b", "a b c", "b", "b c", "c"]
    assert {round(one.score, 9) for one in found} == {round(1 / 16, 9)}
    assert reader.answer("is", "a b c") == found[0]


def test_equal_texts_are_one_answer_at_the_first_place_with_the_scores_of_all() -> None:
    reader, _ = pointing_reader({"cat": 20.0})
    # Two cats in one window: the spans from one to the other count too, and score the same.
    (first, second, *_) = reader.answer("is", "my Cat is the cat.", top_k=3)
    assert (first.text, first.start, first.score) == ("Cat", 3, pytest.approx(0.5))
    assert (second.text, second.score) == ("Cat is the cat", pytest.approx(0.25))
    # One cat in two windows that overlap: each is sure of it.
    answer = reader.answer("is", "a b c cat d e f", window_tokens=9, stride=2)
    assert (answer.text, answer.score) == ("cat", pytest.approx(2.0, rel=1e-6))


def test_no_answer_competes_with_the_lowest_score_of_the_windows() -> None:
    context = "a b c d e f g h i cat"
    for logit, text in ((2.0, "cat"), (9.0, "cat"), (16.0, "")):
        reader, graph = pointing_reader({"[CLS]": logit, "cat": 9.0})
        found = reader.answer("is", context, top_k=2, window_tokens=9, stride=0, allow_no_answer=True)
        assert sum(graph.rows) == 2
        # Softmax over [CLS] and a window's five words.
        of_window = [
            (np.exp(logit) / (np.exp(logit) + 5)) ** 2,
            (np.exp(logit) / (np.exp(logit) + 4 + np.exp(9.0))) ** 2,
        ]
        assert found[0].no_answer_score == pytest.approx(min(of_window))
        assert found[0].text == text
        assert reader.answer("is", context, window_tokens=9, stride=0).text == "cat"
    assert found[0] == Answer("", found[0].no_answer_score, 0, 0, found[0].no_answer_score)


def test_a_tie_with_no_answer_is_an_answer() -> None:
    reader, _ = pointing_reader({})
    found = reader.answer("is", "cat", top_k=2, allow_no_answer=True)
    assert [one.text for one in found] == ["cat", ""]
    assert found[0].score == found[1].score == 0.25


def test_the_question_and_special_tokens_are_never_an_answer() -> None:
    for kind in ("bert", "context first"):
        ids = {make_tokenizer(KINDS[kind]).token_to_id(token) for token in ("dog", "[CLS]", "[SEP]")}
        reader, _ = make_reader(
            kind, lambda feeds, ids=ids: [np.isin(feeds["input_ids"], list(ids)) * np.float32(50)] * 2
        )
        context = "the cat is my cat"
        found = reader.answer("dog [CLS] dog", context, top_k=30, max_answer_tokens=3, align_to_words=False)
        check(context, found)
        assert len(found) == 11  # 12 spans, of which two are "cat"
        assert found[0].no_answer_score == pytest.approx(1.0)


def test_answers_are_no_longer_than_asked_for_and_run_forward() -> None:
    # Start at the end of the context, end at its start: no span has a score worth the name, and one is still best.
    start = {"dog": 300.0}
    end = {"cat": 300.0}
    token_to_id = make_tokenizer(KINDS["bert"]).token_to_id

    def compute(feeds: dict[str, Any]) -> Sequence[FloatArray]:
        return [
            np.vectorize(lambda token, of=of: {token_to_id(key): v for key, v in of.items()}.get(token, 0.0))(
                feeds["input_ids"]
            ).astype(np.float32)
            for of in (start, end)
        ]

    reader, _ = make_reader("bert", compute)
    context = "the cat is not my dog"
    found = reader.answer("is", context, top_k=50, max_answer_tokens=2, align_to_words=False)
    assert {one.text for one in found} == {
        *context.split(),
        *(f"{a} {b}" for a, b in zip(context.split(), context.split()[1:], strict=False)),
    }
    assert [one.text for one in found[:3]] == ["the cat", "cat", "dog"]
    assert all(0 < one.score < 1e-100 for one in found[:3])


def test_tokens_without_characters_are_no_answer() -> None:
    # RoBERTa makes a token of a second space and gives it no characters.
    space = make_tokenizer(KINDS["roberta"]).token_to_id("Ġ")
    reader, _ = make_reader("roberta", lambda feeds: [(feeds["input_ids"] == space) * np.float32(30)] * 2)
    for align in (True, False):
        found = reader.answer("a", "b   c", top_k=20, align_to_words=align)
        assert all(one.text for one in found)


def test_words_are_widened_as_far_as_they_lie_in_the_window() -> None:
    starts = np.array([0, 0, 3, 4, 7, 9, 0])
    ends = np.array([0, 3, 4, 6, 9, 12, 0])
    words = np.array([-1, 0, 1, 1, 1, -1, -1])
    widened = widen_to_words(starts, ends, words)
    assert [list(values) for values in widened] == [[0, 0, 3, 3, 3, 9, 0], [0, 3, 9, 9, 9, 12, 0]]
    reader, _ = pointing_reader({"##c": 9.0})
    assert reader.answer("is", "abcd").text == "abcd"
    assert reader.answer("is", "abcd", align_to_words=False).text == "c"
    assert reader.answer("is", "abcd", window_tokens=6, stride=0).text == "cd"


def test_a_tokenizer_without_special_tokens_has_no_score_for_no_answer() -> None:
    reader, _ = pointing_reader({"is": 9.0})
    reader.tokenizer.backend.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    # The question's word 0 and the context's stand side by side.
    found = reader.answer("  is", "cat dog", top_k=5, allow_no_answer=True)
    assert [(one.text, one.score) for one in found] == [("cat", 0.25), ("cat dog", 0.25), ("dog", 0.25), ("", 0.0)]


def test_a_window_of_nothing_but_null_holds_no_answer() -> None:
    window = Window(np.array([False, False]), np.zeros(2, np.int64), np.zeros(2, np.int64), has_null=True)
    logits = np.zeros(2, np.float32)
    options: dict[str, Any] = {"top_k": 3, "max_answer_tokens": 5, "candidates": 3}
    assert best_answers("x", [window], [(logits, logits)], allow_no_answer=False, **options) == []
    assert best_answers("x", [window], [(logits, logits)], allow_no_answer=True, **options) == [
        Answer("", 1.0, 0, 0, 1.0)
    ]


@pytest.mark.parametrize("kind", ["bert", "roberta", "context first"])
@given(data=st.data())
def test_an_answer_is_the_text_between_its_ends(kind: str, data: st.DataObject) -> None:
    text = st.text(
        st.one_of(st.sampled_from("ab cat😀\u0301\u200d\ufe0f我\n\u00a0İﬁ"), st.characters(codec="utf-8")), max_size=60
    )
    context = data.draw(text)
    question = data.draw(st.sampled_from(["is", "🐶\u0301?", " ", "is the cat my dog"]))
    options: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {
                "top_k": st.integers(1, 5),
                "window_tokens": st.sampled_from([32, 40, 512]),
                "stride": st.sampled_from([None, 0, 3]),
                "max_answer_tokens": st.sampled_from([1, 4, 1000]),
                "allow_no_answer": st.booleans(),
                "align_to_words": st.booleans(),
            }
        )
    )
    reader, _ = make_once(kind)
    try:
        found = reader.answer(question, context, **options)
    except InvalidInputError as error:
        if re.search("context 0 is empty|context 0 has nothing the model can read", str(error)):
            return
        raise
    assert 1 <= len(found) <= options["top_k"]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert len({one.text.lower() for one in found}) == len(found)
    assert all(one.text for one in found) or options["allow_no_answer"]
    check(context, found)


@functools.cache
def make_once(kind: str) -> tuple[Reader, CountingGraph]:
    return make_reader(kind, lambda feeds: [np.sin(feeds["input_ids"] * k).astype(np.float32) * 3 for k in (7, 11)])


def test_a_question_that_leaves_less_room_than_the_stride_gets_a_smaller_one() -> None:
    question = "where is my order " * 30  # 120 tokens, and windows of 130 share 65 by default
    reader, graph = make_once("bert")
    graph.rows.clear()
    assert reader.answer(question, "the cat is my dog. " * 3, window_tokens=130).text
    assert sum(graph.rows) == 5  # of 18 tokens each has 7, and shares 4: half of a half of ... of 65
    with pytest.raises(InvalidInputError, match=r"stride is 60, but question 1 leaves 7 of a window's 130 tokens .*"):
        reader.answer(["short", question], "the cat is my dog. " * 30, window_tokens=130, stride=60)
    assert reader.answer(question, "the cat", window_tokens=130, stride=60).text  # one window: nothing to share


@pytest.mark.parametrize(
    ("question", "context", "options", "message"),
    [
        ("", "text", {}, "question 0 is empty"),
        ("is", "", {"allow_no_answer": True}, "context 0 is empty"),
        (["a", ""], "text", {}, "question 1 is empty"),
        (["a", "b"], ["text", ""], {}, "context 1 is empty"),
        ("is", " \n", {"allow_no_answer": True}, r"context 0 has nothing the model can read: ' \\n'; give"),
        (["a", "b"], ["text"], {}, "there are 2 questions and 1 contexts; give a context for each"),
        ("is", ["text"], {}, "one question needs one context"),
        (5, "text", {}, "question is of type int; give a str or a list of them"),
        (["a"], None, {}, "context is of type NoneType"),
        (["a", None], "text", {}, "question 1 is of type NoneType; give a str"),
        ([("a", "b")], "text", {}, "question 0 is of type tuple; give a str"),
        ("a\ud800", "text", {}, "lone surrogate at position 1"),
        ("is", "a\ud800", {}, "lone surrogate at position 1"),
        ("is", "text", {"top_k": 0}, "top_k is 0; give a whole number of at least 1"),
        ("is", "text", {"top_k": True}, "top_k is True"),
        ("is", "text", {"max_answer_tokens": 1.5}, "max_answer_tokens is 1.5"),
        ("is", "text", {"stride": -1}, "stride is -1; give a whole number of at least 0"),
        ("is", "text", {"stride": 384}, "stride is 384, a window has 384 tokens; give a smaller stride"),
        ("is", "text", {"window_tokens": 0}, "window_tokens is 0"),
        ("is", "text", {"window_tokens": 513}, "window_tokens is 513, the model reads 512 at most"),
        (
            "what is",
            "text",
            {"window_tokens": 5},
            r"question 0 has .* none of a window's 5 .*; shorten it, or give more",
        ),
        ("is " * 600, "text", {"window_tokens": 512}, r"question 0 has at least 510 tokens, .* shorten it$"),
        (
            ["a", "is " * 400],
            "text",
            {},
            r"question 1 .* 384 for its context; shorten it, or give more window_tokens, up",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    question: Any, context: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_once("bert")[0].answer(question, context, **options)
