"""runtime/generation/limits.py: a generator behind a `BatchingRunner`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import ClosedError, DeadlineExceededError, ForkError, QueueFullError
from onnxpress.runtime.generation.engine import EngineState
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.runner import BatchingRunner
from tests.tiny_generator import make_bundle, opening


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def generator(bundle: Bundle) -> Iterator[Generator]:
    with opening(bundle) as open_with:
        yield open_with()


def slow(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the engine's thread before each step until the event is set."""
    may_go = threading.Event()
    advance = generator.engine._scheduler.advance

    def held() -> None:
        may_go.wait(10)
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


def test_an_answer_that_is_late_is_an_error(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchingRunner(generator) as runner:
        may_go = slow(generator, monkeypatch)
        threading.Timer(0.1, may_go.set).start()
        with pytest.raises(DeadlineExceededError, match=r"0\.05 seconds"):
            runner.within(0.05).generate("one", temperature=0)
        with pytest.raises(DeadlineExceededError):
            asyncio.run(runner.asynchronous.within(1e-6).generate("one", temperature=0))
        with pytest.raises(DeadlineExceededError):
            list(runner.within(1e-6).stream("one", temperature=0))
        # The caller's own time gives what there is, as without a runner.
        assert runner.within(60).generate("one", timeout_seconds=1e-6).finish_reason == "timeout"


def test_a_full_queue_refuses(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchingRunner(generator, most_waiting=1) as runner:
        may_go = slow(generator, monkeypatch)
        thread = threading.Thread(target=runner.generate, args=("one",))
        thread.start()
        with pytest.raises(QueueFullError, match="which is the limit"):
            runner.generate(["two"] * 50)
        may_go.set()
        thread.join()
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
    assert runner.close(timeout=10)
    thread.join()
    assert reasons == ["length"]


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
