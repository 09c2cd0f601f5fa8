"""runtime/generation/stopping.py: where an answer ends, and that nothing of a stop text is ever shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.generation.sampling import Sampling
from onnxpress.runtime.generation.stopping import AnswerText, StopTexts, StopTracker
from onnxpress.runtime.generation.streaming import Detokenizer
from tests.text_tokenizers import byte_fallback, byte_level

EOS = 2


def shown_until_end(pieces: list[str], **options: Any) -> tuple[str, str | None]:
    """All that is shown of an answer whose tokens add these pieces, and why it ends."""
    tracker = StopTracker(Sampling(**options))
    shown = ""
    for token, piece in enumerate(pieces, 100):
        text, reason = tracker.feed(token, piece)
        shown += text
        if reason is not None:
            break
    return shown + tracker.finish(), tracker.reason


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_what_is_shown_does_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    finder = StopTexts(stops)
    shown = ""
    for piece in pieces:
        shown += finder.push(piece)
        so_far = "".join(pieces)[: len(shown)]
        assert shown == so_far
        assert not any(stop in shown for stop in stops)
    shown += finder.finish()
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert finder.found == bool(ends)
    assert shown == (text[: min(ends)[1]] if ends else text)


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_no_more_is_held_back_than_could_become_a_stop_text(text: str, stops: list[str]) -> None:
    finder = StopTexts(stops)
    shown = "".join(finder.push(character) for character in text)
    if not finder.found:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_the_beginning_of_a_stop_text_is_shown_once_it_is_none() -> None:
    tracker = StopTracker(Sampling(stop="<end>"))
    texts = [tracker.feed(0, piece)[0] for piece in ("a <", "e", "n", "x", "<", "end")]
    assert texts == ["a ", "", "", "<enx", "", ""]
    assert tracker.feed(0, ">!") == ("", "stop")
    assert tracker.finish("more") == ""


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["one\n", "\ntwo"], "\n\n", "one"),
        (["one\n\ntwo"], "\n\n", "one"),
        (["aab", "aaabaaac"], "aaac", "aabaaab"),
        (["ab", "c"], ["abc", "b"], "a"),  # b is complete before abc is
        (["abc"], ["abc", "b"], "a"),
        (["xyz"], ["yz", "xyz"], ""),  # complete together: the one that starts first
        (["END"], "END", ""),
        (["größe ", "😀", "😀!"], "😀!", "größe 😀"),
    ],
)
def test_the_text_is_cut_before_the_stop_text(pieces: list[str], stop: str | list[str], shown: str) -> None:
    assert shown_until_end(pieces, stop=stop) == (shown, "stop")


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert shown_until_end(["a", "b<", "e"], stop="<end>", max_new_tokens=3) == ("ab<e", "length")


def test_a_stop_text_in_the_last_token_counts_as_a_stop() -> None:
    assert shown_until_end(["a", "b."], stop=".", max_new_tokens=2) == ("ab", "stop")


def test_a_stop_text_that_the_rest_completes_counts_as_a_stop() -> None:
    tracker = StopTracker(Sampling(stop="b\n", max_new_tokens=2))
    assert tracker.feed(0, "ab") == ("a", None)
    assert tracker.feed(1, "") == ("", "length")
    assert tracker.finish("\n") == ""
    assert tracker.reason == "stop"


@pytest.mark.parametrize(
    ("options", "tokens", "reason"),
    [
        ({"max_new_tokens": 3}, [5, 6, 7], "length"),
        ({"max_new_tokens": 9}, [5, 6, EOS], "stop"),
        ({"max_new_tokens": 9}, [EOS], "stop"),
        ({"max_new_tokens": 3}, [5, 6, EOS], "stop"),
        ({"max_new_tokens": 3, "ignore_eos": True}, [5, EOS, 7], "length"),
        ({"max_new_tokens": 9, "stop_token_ids": [7]}, [5, 6, 7], "stop"),
        ({"max_new_tokens": 9, "stop_token_ids": [7], "ignore_eos": True}, [EOS, 7], "stop"),
    ],
)
def test_an_answer_ends_with_its_last_token(options: dict[str, Any], tokens: list[int], reason: str) -> None:
    tracker = StopTracker(Sampling(**options), eos_ids=[EOS])
    reasons = [tracker.feed(token, "x")[1] for token in tokens]
    assert reasons == [None] * (len(tokens) - 1) + [reason]


def test_prompt_and_answer_together_fit_the_context() -> None:
    tracker = StopTracker(Sampling(max_new_tokens=100), prompt_tokens=7, context=10)
    assert [tracker.feed(0, "x")[1] for _ in range(3)] == [None, None, "length"]


def answer(tokenizer: Any, tokens: list[int], **options: Any) -> tuple[str, list[bool], str | None]:
    """The text, what `feed` said of the end after each token, and the reason."""
    stream = Detokenizer(tokenizer).stream()
    text = AnswerText(StopTracker(Sampling(**options), eos_ids=[tokenizer.token_to_id("</s>")]), stream)
    shown, ends = "", []
    for token in tokens:
        piece, stops = text.feed(token)
        shown += piece
        ends.append(stops)
        if stops:
            break
    return shown + text.end(), ends, text.reason


def test_the_text_of_a_stop_token_is_no_part_of_the_answer() -> None:
    tokenizer = byte_level()
    a, b = tokenizer.token_to_id("a"), tokenizer.token_to_id("b")
    assert answer(tokenizer, [a, b, a], stop_token_ids=[b]) == ("a", [False, True], "stop")
    assert answer(tokenizer, [a, tokenizer.token_to_id("</s>")]) == ("a", [False, True], "stop")


def test_what_the_tokenizer_held_back_is_there_at_the_end() -> None:
    tokenizer = byte_fallback()
    newline, a, end = 10, tokenizer.token_to_id("a"), tokenizer.token_to_id("</s>")
    assert answer(tokenizer, [a, newline, end]) == ("a\n", [False, False, True], "stop")
    assert answer(tokenizer, [a, newline], max_new_tokens=2) == ("a\n", [False, False], "length")
    assert answer(tokenizer, [a, newline], max_new_tokens=2, stop="\n") == ("a", [False, True], "stop")
    assert answer(tokenizer, [a, 0xF0], max_new_tokens=2) == ("a\ufffd", [False, False], "length")


def test_an_answer_that_is_ended_from_outside_gives_the_rest_once() -> None:
    tokenizer = byte_level()
    tracker = StopTracker(Sampling(stop="ab"))
    text = AnswerText(tracker, Detokenizer(tokenizer).stream())
    assert text.feed(tokenizer.token_to_id("a")) == ("", False)
    assert (text.end(), text.end(), text.reason) == ("a", "", None)


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("together", [2, 3, 16])
def test_text_that_is_made_of_many_tokens_at_a_time_is_the_same(make: Any, together: int) -> None:
    tokenizer = make()
    a, end = tokenizer.token_to_id("a"), tokenizer.token_to_id("</s>")
    for tokens in ([a, 0xF0, a, a, end], [a, a, a], [end], [a] * 7):
        found = []
        for count in (1, together):
            tracker = StopTracker(Sampling(max_new_tokens=len(tokens)), eos_ids=[end])
            text = AnswerText(tracker, Detokenizer(tokenizer).stream(), together=count)
            fed = [text.feed(token) for token in tokens]
            found.append(("".join(piece for piece, _ in fed) + text.end(), [stops for _, stops in fed], text.reason))
        assert found[0] == found[1]


class DoneAfterTwo:
    """A grammar that is complete with the second token."""

    count = 0

    def is_done(self) -> bool:
        self.count += 1
        return self.count == 2


def test_an_answer_ends_when_its_grammar_is_complete() -> None:
    tokenizer = byte_level()
    a = tokenizer.token_to_id("a")
    text = AnswerText(StopTracker(Sampling(max_new_tokens=9)), Detokenizer(tokenizer).stream(), DoneAfterTwo())
    assert [text.feed(a), text.feed(a)] == [("a", False), ("a", True)]
    assert text.reason == "stop"
