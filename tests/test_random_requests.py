"""bench/requests.py in small: random requests against a tiny random model, and checks that find what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.answer_checks import AnswerChecks, wrong_error
from bench.asking import Tally, ask_all, close
from bench.random_requests import LOOP_WAYS, THREAD_WAYS, Asked, RandomRequests
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.cache import KeyValueCache
from onnxpress.runtime.generation.decoder import Decoder
from onnxpress.runtime.generation.engine import Engine
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.requests import Generation
from onnxpress.runtime.manifest import SessionSettings, TaskSettings, TokenizerSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.tokenizer import Tokenizer
from tests.tiny_generator import SETTINGS, TINY, byte_tokenizer


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    """With room for three requests of the whole context."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    session = make_session(TINY.save(folder / "model.onnx"), SessionSettings(), settings=ServingSettings(1))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizing = TokenizerSettings("tokenizer.json", TINY.context, 2)
    cache = KeyValueCache(TINY.layout, TINY.context, TINY.layout.size_bytes(3, TINY.context))
    settings = TaskSettings("text-generation", tokenizing, None, None, None, SETTINGS)
    made = Generator(Engine(Decoder(session, cache)), Tokenizer(folder / "tokenizer.json", tokenizing), settings)
    yield made
    made.close()


def test_random_requests_from_threads_and_a_loop_are_answered_rightly(generator: Generator) -> None:
    tally = ask_all(generator, 220, seed=1)
    close(generator, tally)
    assert not tally.shown
    assert tally.asked == 220
    assert {"length", "stop", "refused", "cancelled", "timeout", "left"} <= set(tally.outcomes)
    assert tally.compared > 10
    assert tally.tokens["reused_tokens"] > 0


def test_the_same_seed_gives_the_same_requests(generator: Generator) -> None:
    for ways in (THREAD_WAYS, LOOP_WAYS):
        made = [[repr(RandomRequests(generator, 5, True).make(n, ways)) for n in range(50)] for _ in range(2)]
        assert made[0] == made[1]
        assert len(set(made[0])) == 50


ASKED = Asked(0, "stream", [[5, 6]], {"max_new_tokens": 4, "temperature": 0.0}, "stays", 0.0, 1.0, None, None)


def right_answer(generator: Generator) -> Generation:
    return generator.generate([5, 6], max_new_tokens=4, temperature=0.0, ignore_eos=True)


WRONG: dict[str, Callable[[Generation], Generation]] = {
    "new tokens where 4 are allowed": lambda a: dataclasses.replace(a, token_ids=a.token_ids * 2),
    "the end is called length at 3 of 4": lambda a: dataclasses.replace(a, token_ids=a.token_ids[:3]),
    "nothing stops": lambda a: dataclasses.replace(a, finish_reason="stop"),
    "cancelled by nobody": lambda a: dataclasses.replace(a, finish_reason="cancelled"),
    "timed out without a time": lambda a: dataclasses.replace(a, finish_reason="timeout"),
    "the text is": lambda a: dataclasses.replace(a, text=a.text + "."),
    "of a prompt that has 2": lambda a: dataclasses.replace(a, prompt_tokens=3),
    "logprobs": lambda a: dataclasses.replace(a, logprobs=()),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_answer_is_found(generator: Generator, message: str) -> None:
    checks, answer = AnswerChecks(generator), right_answer(generator)
    assert list(checks.faults(ASKED, [5, 6], answer)) == []
    assert message in " ".join(checks.faults(ASKED, [5, 6], WRONG[message](answer)))


def test_a_stop_text_in_an_answer_and_a_broken_grammar_are_found(generator: Generator) -> None:
    checks, answer = AnswerChecks(generator), right_answer(generator)
    stopping = dataclasses.replace(ASKED, options=ASKED.options | {"stop": answer.text[0]})
    assert "the stop text" in " ".join(checks.faults(stopping, [5, 6], answer))
    constrained = dataclasses.replace(ASKED, constraint="choice")
    assert "does not keep the choice" in " ".join(checks.faults(constrained, [5, 6], answer))


def test_tokens_other_than_alone_are_found(generator: Generator) -> None:
    checks, answer = AnswerChecks(generator), right_answer(generator)
    assert checks.differs_from_alone([5, 6], answer.token_ids) is None
    other = (*answer.token_ids[:-1], (answer.token_ids[-1] + 1) % TINY.vocabulary)
    assert "token 3 is" in str(checks.differs_from_alone([5, 6], other))


def test_an_error_must_be_a_sentence_of_ours() -> None:
    assert wrong_error(InvalidInputError("max_new_tokens is 0; give a whole number")) is None
    assert wrong_error(ValueError("max_new_tokens is 0; give a whole number")) is not None
    assert wrong_error(InvalidInputError("")) is not None


def test_memory_that_grows_after_the_warm_up_is_seen() -> None:
    tally = Tally(resident=[(n, 1000 + min(n, 20)) for n in range(100)])
    assert tally.growth_bytes() == 0
    tally.resident = [(n, 1000 + n) for n in range(100)]
    assert tally.growth_bytes() == pytest.approx(60)
