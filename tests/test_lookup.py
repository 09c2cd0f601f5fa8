"""runtime/generation/lookup.py: drafts from what was written before make answers sooner and no others."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.constraints import regex
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.lookup import PromptLookup
from onnxpress.runtime.generation.requests import Generation
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_graph import TinyDecoder
from tests.tiny_generator import TINY, byte_tokenizer, make_bundle


def make_repetitive() -> TinyDecoder:
    """A decoder that writes little but the letters a to h, so that what it writes has often been there before."""
    decoder = dataclasses.replace(TINY)
    letters = byte_tokenizer().encode("abcdefgh", add_special_tokens=False).ids
    decoder.weights["head"][:, np.setdiff1d(np.arange(decoder.vocabulary), letters)] *= 0.1
    return decoder


DECODER = make_repetitive()
REPETITIVE = ["abcabcabcabc", "the cat and the dog and the cat and the", "aaaaaaaaaaaaaaaa"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"), DECODER)


@pytest.fixture(scope="module")
def load(bundle: Bundle) -> Iterator[Callable[[], Generator]]:
    opened: list[Generator] = []

    def open_one() -> Generator:
        opened.append(
            Generator.open(bundle, bundle.manifest.variant(None), ["CPUExecutionProvider"], ServingSettings(threads=1))
        )
        return opened[-1]

    yield open_one
    for generator in opened:
        generator.close()


@pytest.fixture(scope="module")
def generator(load: Callable[[], Generator]) -> Generator:
    return load()


def assert_same(found: Generation, expected: Generation, prompt: list[int]) -> None:
    """Equal, up to the first token where the two best were as good as equal."""
    for place, (a, b) in enumerate(zip(found.token_ids, expected.token_ids, strict=False)):
        if a != b:
            logits = DECODER.logits([*prompt, *expected.token_ids[:place]])
            second, best = np.sort(logits)[-2:]
            assert best - second < 1e-4 * np.abs(logits).max(), (place, found.token_ids, expected.token_ids)
            return
    assert (found.token_ids, found.text, found.finish_reason) == (
        expected.token_ids, expected.text, expected.finish_reason,
    )  # fmt: skip


def random_prompts(count: int) -> list[list[int]]:
    numbers = random.Random(3)
    return [[numbers.randrange(5, DECODER.vocabulary) for _ in range(numbers.randint(1, 30))] for _ in range(count)]


# Drafts


def test_a_draft_is_what_followed_the_longest_match_the_last_time() -> None:
    assert PromptLookup(3).draft([1, 2, 3, 9, 8, 7, 3, 4, 4, 1, 2], [3], 10) == [9, 8, 7]
    assert PromptLookup(2).draft([5, 2, 3, 9, 8, 7, 3, 4, 4], [2, 3], 10) == [9, 8]
    assert PromptLookup(4).draft([5, 2, 3, 9, 3, 6], [3], 10) == [6, 3, 6, 3]
    assert PromptLookup(4).draft([7], [7], 10) == [7] * 4


def test_there_is_no_draft_after_a_new_token_or_without_room() -> None:
    lookup = PromptLookup(4)
    assert lookup.draft([1, 2], [3], 10) == []
    assert lookup.draft([1, 2], [3, 1], 10) == [2, 3, 1, 2]
    assert lookup.draft([1, 2], [3, 1, 2], 2) == [3, 1]
    assert lookup.draft([1, 2], [3, 1, 2], 0) == []


def test_drafts_get_shorter_where_they_are_wrong() -> None:
    lookup = PromptLookup(8)
    lengths = []
    for accepted in (0, 1, 3, 7, 2):
        lengths.append(len(lookup.draft([1, 1], [1], 100)))
        lookup.learn(accepted)
    assert lengths == [8, 1, 3, 7, 8]
    assert len(lookup.draft([1, 1], [1], 100)) == 5


# Answers


@pytest.mark.parametrize("drafted", [1, 5, 64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_eos": True, "logprobs": 2},
        {"repetition_penalty": 1.02, "presence_penalty": 0.1, "frequency_penalty": 0.01},
        {"grammar": regex("(ab|ba|c){30,60}")},
    ],
    ids=["plain", "logprobs", "penalties", "grammar"],
)
def test_answers_are_those_without(generator: Generator, drafted: int, options: dict[str, Any]) -> None:
    before = generator.engine.state.counts
    prompts = [generator._prompts.encode(text) for text in REPETITIVE] + random_prompts(5)
    for prompt in prompts:
        plain = generator.generate(prompt, max_new_tokens=60, temperature=0.0, **options)
        found = generator.generate(prompt, max_new_tokens=60, temperature=0.0, prompt_lookup=drafted, **options)
        assert_same(found, plain, prompt)
        if plain.logprobs is not None:
            assert found.logprobs is not None
            np.testing.assert_allclose(
                [step.logprob for step in found.logprobs], [step.logprob for step in plain.logprobs], atol=1e-4
            )
    assert generator.engine.state.counts.accepted_tokens - before.accepted_tokens > 20


def test_each_accepted_token_saves_a_step(load: Callable[[], Generator]) -> None:
    generator = load()
    answer = generator.generate(REPETITIVE[0], max_new_tokens=100, ignore_eos=True, prompt_lookup=8)
    counts = generator.engine.state.counts
    assert counts.accepted_tokens > 20
    assert counts.steps + counts.accepted_tokens == len(answer.token_ids) - 1
    assert counts.new_tokens == len(answer.token_ids)


def test_an_answer_ends_anywhere_in_an_accepted_draft(load: Callable[[], Generator]) -> None:
    generator = load()
    prompt = generator._prompts.encode(REPETITIVE[0])
    whole = generator.generate(prompt, max_new_tokens=100, ignore_eos=True).token_ids
    for length in range(1, 100, 7):
        found = generator.generate(prompt, max_new_tokens=length, ignore_eos=True, prompt_lookup=16)
        assert (found.token_ids, found.finish_reason) == (whole[:length], "length")
        # The row that is kept holds what it says: the next turn goes on from it.
        following = [*prompt, *found.token_ids, 9]
        further = generator.generate(following, max_new_tokens=1, ignore_eos=True)
        if len(following) > 17:  # less is computed again
            assert further.reused_tokens >= len(following) - 2
        assert further.token_ids[0] == int(DECODER.logits(following).argmax())


def test_stops_end_an_answer_in_the_middle_of_a_draft(generator: Generator) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True}
    for text in [*REPETITIVE, "stop", "somewhere else"]:
        whole = generator.generate(text, **options)
        for place in (7, 23, 41):
            token = whole.token_ids[place]
            found = generator.generate(text, stop_token_ids=[token], prompt_lookup=16, **options)
            assert found.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
            assert found.finish_reason == "stop"
        middle = len(whole.text) * 2 // 3
        stop = whole.text[middle : middle + 2]
        plain = generator.generate(text, stop=stop, **options)
        found = generator.generate(text, stop=stop, prompt_lookup=16, **options)
        assert (found.text, found.token_ids, found.finish_reason) == (plain.text, plain.token_ids, "stop")
        assert "".join(generator.stream(text, stop=stop, prompt_lookup=16, **options)) == plain.text


def test_an_answer_goes_up_to_the_end_of_the_context(generator: Generator) -> None:
    plain = generator.generate(REPETITIVE[1], max_new_tokens=1000, ignore_eos=True)
    found = generator.generate(REPETITIVE[1], max_new_tokens=1000, ignore_eos=True, prompt_lookup=64)
    assert found.prompt_tokens + len(found.token_ids) == DECODER.context
    assert found.token_ids == plain.token_ids


def test_a_cancelled_answer_is_the_beginning_of_the_whole(load: Callable[[], Generator]) -> None:
    generator = load()
    whole = generator.generate(REPETITIVE[0], max_new_tokens=200, ignore_eos=True)
    with generator.open_stream(REPETITIVE[0], max_new_tokens=200, ignore_eos=True, prompt_lookup=8) as stream:
        for count, _ in enumerate(stream):
            if count == 40:
                break
    generator.close()
    again = generator.generate(REPETITIVE[0], max_new_tokens=200, ignore_eos=True, prompt_lookup=8)
    assert again.token_ids == whole.token_ids


def test_others_join_and_leave_while_drafts_run(load: Callable[[], Generator]) -> None:
    generator = load()
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 0.0}
    others = random_prompts(6)
    expected = [generator.generate(prompt, max_new_tokens=8, **options) for prompt in others]
    whole = generator.generate(REPETITIVE[0], max_new_tokens=200, **options)
    answers: list[Generation] = []
    with generator.open_stream(REPETITIVE[0], max_new_tokens=200, prompt_lookup=4, **options) as stream:
        for count, _ in enumerate(stream):
            if count % 20 == 10 and len(answers) < len(others):
                prompt = others[len(answers)]
                answers.append(generator.generate(prompt, max_new_tokens=8, prompt_lookup=4, **options))
        assert_same(stream.result(), whole, generator._prompts.encode(REPETITIVE[0]))
    assert len(answers) == len(others)
    for found, wanted, prompt in zip(answers, expected, others, strict=True):
        assert_same(found, wanted, prompt)


def test_drawn_answers_are_not_drafted(load: Callable[[], Generator]) -> None:
    generator = load()
    plain = generator.generate(REPETITIVE[0], temperature=1.0, seed=3, max_new_tokens=30)
    assert generator.generate(REPETITIVE[0], temperature=1.0, seed=3, max_new_tokens=30, prompt_lookup=8) == plain
    assert generator.engine.state.counts.drafted_tokens == 0


def test_a_run_that_fails_ends_its_request_and_the_next_is_served(
    load: Callable[[], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load()
    decoder = generator.engine.decoder
    extend = decoder.extend

    def fail(row: int, tokens: list[int], last: int = 1) -> Any:
        if last > 1:
            raise RuntimeError("onnxruntime has no memory")
        return extend(row, tokens, last)

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "extend", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            generator.generate(REPETITIVE[0], max_new_tokens=60, ignore_eos=True, prompt_lookup=8)
    plain = generator.generate(REPETITIVE[0], max_new_tokens=60, ignore_eos=True)
    assert generator.generate(REPETITIVE[0], max_new_tokens=60, ignore_eos=True, prompt_lookup=8).text == plain.text


@pytest.mark.parametrize("value", [-1, 65, "many", True, 1.5])
def test_other_lengths_are_refused(generator: Generator, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="prompt_lookup"):
        generator.generate("x", prompt_lookup=value)
