"""runtime/generation/limits.py: a generator behind a `BatchingRunner`."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.errors import (
    ClosedError,
    DeadlineExceededError,
    ForkError,
    InvalidInputError,
    QueueFullError,
)
from onnxpress.runtime.generation.constraints import regex
from onnxpress.runtime.generation.engine import EngineState
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.requests import Delta, Generation
from onnxpress.runtime.runner import BatchingRunner
from tests.tiny_generator import make_bundle, opening
from tests.waiting import LONGEST, until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def generator(bundle: Bundle) -> Iterator[Generator]:
    with opening(bundle) as open_with:
        yield open_with()


def without_reuse(answer: Generation) -> Generation:
    """An answer without what the cache happened to hold."""
    others = tuple(map(without_reuse, answer.others))
    return dataclasses.replace(answer, reused_tokens=0, others=others)


def slow(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the engine's thread before each step until the event is set."""
    may_go = threading.Event()
    advance = generator.engine._scheduler.advance

    def held() -> None:
        may_go.wait(LONGEST)
        advance()

    monkeypatch.setattr(generator.engine._scheduler, "advance", held)
    return may_go


def test_answers_are_the_generators_own(generator: Generator) -> None:
    expected = generator.generate(["one", "two"], temperature=0)
    with BatchingRunner(generator) as runner:
        assert [answer.text for answer in runner.generate(["one", "two"], temperature=0)] == [
            answer.text for answer in expected
        ]
        assert "".join(runner.stream("one", temperature=0)) == expected[0].text
        asked = [{"role": "user", "content": "x"}]
        assert runner.chat(asked, temperature=0).text == generator.chat(asked, temperature=0).text

        async def ask() -> tuple[str, str]:
            answer = await runner.asynchronous.within(60).generate("two", temperature=0)
            return answer.text, "".join([text async for text in runner.asynchronous.stream("one", temperature=0)])

        assert asyncio.run(ask()) == (expected[1].text, expected[0].text)
        assert isinstance(runner.state, EngineState)


@pytest.mark.parametrize(("method", "task"), [("embed", "feature-extraction"), ("score", "text-ranking")])
def test_a_method_of_another_task_says_which(generator: Generator, method: str, task: str) -> None:
    runner = BatchingRunner(generator)
    said = rf"^this bundle is for text-generation, {method}\(\) needs one for {task}"
    with pytest.raises(AttributeError, match=said):
        getattr(runner, method)("a", ["b"])
    with pytest.raises(AttributeError, match=said):
        asyncio.run(getattr(runner.asynchronous, method)("a", ["b"]))


def test_event_loops_get_all_that_threads_get(generator: Generator) -> None:
    options: Any = {"temperature": 1.0, "seed": 5, "max_new_tokens": 20}
    asked = [{"role": "user", "content": "x"}]
    with BatchingRunner(generator) as runner:
        face = runner.asynchronous
        several = runner.generate(["one", "two"], n=2, logprobs=1, **options)

        async def ask() -> tuple[list[Generation], Generation, str]:
            return (
                await face.generate(["one", "two"], n=2, logprobs=1, **options),
                await face.chat(asked, continue_final_message=True, **options),
                "".join([text async for text in face.stream_chat(asked, **options)]),
            )

        together, answer, text = asyncio.run(ask())
        assert [without_reuse(each) for each in together] == [without_reuse(each) for each in several]
        assert answer.text == runner.chat(asked, continue_final_message=True, **options).text
        assert text == runner.chat(asked, **options).text


def test_several_answers_are_streamed_with_what_each_token_is(generator: Generator) -> None:
    options: Any = {"temperature": 1.0, "seed": 5, "max_new_tokens": 20, "n": 3, "logprobs": 2}
    with BatchingRunner(generator) as runner:
        first, second = runner.generate(["one", "two"], **options)
        report = CallReport()

        async def ask() -> tuple[dict[int, list[Delta]], dict[int, Generation]]:
            deltas: dict[int, list[Delta]] = {index: [] for index in range(6)}
            ends = {}
            async with runner.asynchronous.within(60, report).open_streams(["one", "two"], **options) as streams:
                while items := await streams.ready():
                    for index, item in items:
                        if isinstance(item, Generation):
                            ends[index] = item
                        else:
                            deltas[index].append(item)
                assert await streams.ready() == []  # also when asked again
            return deltas, ends

        deltas, ends = asyncio.run(ask())
        for index, answer in enumerate([first, *first.others, second, *second.others]):
            assert without_reuse(ends[index]) == dataclasses.replace(without_reuse(answer), others=())
            assert "".join(delta.text for delta in deltas[index]) == answer.text
            assert tuple(delta.logprob for delta in deltas[index] if delta.token_id is not None) == answer.logprobs
        assert (report.sequences, report.tokens) == (6, 3 * (first.prompt_tokens + second.prompt_tokens))
        assert report.run_seconds > 0


def test_leaving_streams_gives_their_rows_back(generator: Generator) -> None:
    options: Any = {"max_new_tokens": 200, "ignore_eos": True, "n": 3}

    async def ask(runner: BatchingRunner) -> None:
        async with runner.asynchronous.open_streams(["one"], **options) as streams:
            assert await streams.ready()

    with BatchingRunner(generator) as runner:
        asyncio.run(ask(runner))
        until(lambda: not runner.state.running + runner.state.waiting)
        assert isinstance(runner.state, EngineState)
        assert runner.state.taken_rows == 0


def test_long_texts_and_grammars_do_not_hold_the_event_loop(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    answers = generator.preparing.answers

    def prepared(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return answers(*arguments, **options)

    monkeypatch.setattr(generator.preparing, "answers", prepared)

    async def ask(runner: BatchingRunner) -> None:
        await runner.asynchronous.generate("x", max_new_tokens=1)
        await runner.asynchronous.generate("x", max_new_tokens=1, grammar=regex("[ab]"))
        with pytest.raises(InvalidInputError, match="the prompt has 10001 tokens"):
            await runner.asynchronous.generate("x" * 10_000)

    with BatchingRunner(generator) as runner:
        asyncio.run(ask(runner))
    assert [thread is threading.main_thread() for thread in threads] == [True, False, False]


def test_a_call_has_so_many_tokens_at_most(generator: Generator) -> None:
    with BatchingRunner(generator, most_tokens=50) as runner:
        for options in ({"n": 2}, {"num_beams": 2}):
            assert runner.generate("one", max_new_tokens=20, **options)  # type: ignore[call-overload]
            with pytest.raises(InvalidInputError, match=r"may have \d+ tokens together, 50 are allowed"):
                runner.generate(["one"] * 3, max_new_tokens=20, **options)  # type: ignore[call-overload]
        with pytest.raises(InvalidInputError, match="may have 68 tokens together"):
            asyncio.run(runner.asynchronous.generate("one", max_new_tokens=30, n=2))
        # It is the runner's: neither the model's own methods nor another runner have it.
        assert generator.generate(["one"] * 3, max_new_tokens=20)
        assert BatchingRunner(generator).generate(["one"] * 3, max_new_tokens=20)


def test_an_answer_that_is_late_is_an_error(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchingRunner(generator) as runner:
        advance = generator.engine._scheduler.advance
        with monkeypatch.context() as patch:
            patch.setattr(generator.engine._scheduler, "advance", lambda: (time.sleep(0.06), advance()))
            with pytest.raises(DeadlineExceededError, match=r"0\.05 seconds"):
                runner.within(0.05).generate("one", temperature=0)
        with pytest.raises(DeadlineExceededError):
            asyncio.run(runner.asynchronous.within(1e-6).generate("one", temperature=0))
        with pytest.raises(DeadlineExceededError):
            list(runner.within(1e-6).stream("one", temperature=0))
        # The caller's own time gives what there is, as without a runner.
        assert runner.within(60).generate("one", timeout_seconds=1e-6).finish_reason == "timeout"


def test_a_beam_search_has_no_time(generator: Generator) -> None:
    expected = generator.generate("one", num_beams=2, max_new_tokens=3)
    with BatchingRunner(generator, seconds=60) as runner:
        assert runner.generate("one", num_beams=2, max_new_tokens=3) == expected
        with pytest.raises(InvalidInputError, match="timeout_seconds cannot be combined with num_beams"):
            runner.generate("one", num_beams=2, timeout_seconds=5)
        with pytest.raises(InvalidInputError, match=r"or an event loop, .* asyncio\.to_thread"):
            asyncio.run(runner.asynchronous.generate("one", num_beams=2))


@pytest.mark.parametrize("time", ["soon", float("nan"), -1])
def test_a_callers_own_time_must_be_one(generator: Generator, time: Any) -> None:
    message = "timeout_seconds is .*; give a number of seconds"
    with BatchingRunner(generator, seconds=60) as runner, pytest.raises(InvalidInputError, match=message):
        runner.generate("one", timeout_seconds=time)


def test_a_full_queue_refuses(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchingRunner(generator, most_waiting=1) as runner:
        may_go = slow(generator, monkeypatch)
        thread = threading.Thread(target=runner.generate, args=("one",))
        thread.start()
        while not runner.state.running and not runner.state.waiting:
            pass
        with pytest.raises(QueueFullError, match="which is the limit; try again later, or ask for less at once"):
            runner.generate(["two"] * 50)
        others = generator.open_stream("three"), generator.open_stream("four")  # without this limit
        may_go.set()
        thread.join()
        assert [other.result().finish_reason for other in others] == ["length"] * 2
        while runner.state.running or runner.state.waiting:  # what was cancelled is on its way out
            pass
        assert len(runner.generate("one", temperature=0).token_ids) > 0


def test_closing_waits_or_cancels(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = BatchingRunner(generator)
    may_go = slow(generator, monkeypatch)
    reasons = []
    thread = threading.Thread(target=lambda: reasons.append(runner.generate("one", ignore_eos=True).finish_reason))
    thread.start()
    while not runner.state.running and not runner.state.waiting:
        pass
    assert not runner.close(timeout=0.01)
    with pytest.raises(ClosedError):
        runner.generate("two")
    may_go.set()
    assert runner.close(timeout=LONGEST)
    thread.join()
    assert reasons == ["length"]


def test_ctrl_c_as_a_call_begins_is_the_end_of_it(generator: Generator) -> None:
    class CtrlC(threading.Condition):
        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            calls._changed = threading.Condition()
            raise KeyboardInterrupt

    runner = BatchingRunner(generator)
    calls: Any = runner._serving
    calls._changed = CtrlC()
    with pytest.raises(KeyboardInterrupt):
        runner.generate("one")
    assert runner.close(timeout=LONGEST)


@pytest.mark.parametrize("prompts", ["two", None])
def test_what_is_no_list_of_prompts_is_refused(generator: Generator, prompts: Any) -> None:
    with BatchingRunner(generator) as runner:

        async def ask() -> None:
            async with runner.asynchronous.open_streams(prompts):
                pass

        for refused in (runner.asynchronous.encode(prompts), ask()):
            with pytest.raises(InvalidInputError, match=r"prompts are of type .*; give a list of them"):
                asyncio.run(refused)


def test_closing_ends_what_was_asked_through_it(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, other = BatchingRunner(generator), BatchingRunner(generator)
    may_go = slow(generator, monkeypatch)
    reasons = {}

    def ask(name: str, face: Any) -> None:
        reasons[name] = face.generate("one", ignore_eos=True).finish_reason

    faces = {"runner": runner, "other": other, "model": generator}
    threads = [threading.Thread(target=ask, args=each) for each in faces.items()]
    for thread in threads:
        thread.start()
    until(lambda: runner.state.running + runner.state.waiting == 3)
    assert not runner.close(drain=False, timeout=0)
    may_go.set()
    assert runner.close(timeout=LONGEST)
    for thread in threads:
        thread.join()
    assert reasons == {"runner": "cancelled", "other": "length", "model": "length"}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads is the point
def test_a_fork_is_told(generator: Generator) -> None:
    runner = BatchingRunner(generator)
    runner.generate("one")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            runner.generate("one")
        except ForkError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
