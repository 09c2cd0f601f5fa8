"""runtime/call_report.py: what calls and runs of a runner took, and the limit of a call's tokens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxpress.runtime.call_report import BatchReport, CallReport
from onnxpress.runtime.errors import DeadlineExceededError, InvalidInputError, QueueFullError
from onnxpress.runtime.queue_counts import QueueCounts
from onnxpress.runtime.runner import BatchingRunner
from tests.gated_graph import SECONDS, GatedGraph, graph, new_runner, vector
from tests.waiting import until

__all__ = ["graph", "new_runner"]  # fixtures

HELD = 0.05  # seconds that a graph is held


Embed = Callable[[Any, CallReport], Any]


@pytest.fixture(params=["threads", "event loop"])
def embed(request: pytest.FixtureRequest, new_runner: Callable[..., BatchingRunner]) -> Embed:
    """Embeds through either face of one runner, with a report."""
    runner = new_runner(most_tokens=10)
    if request.param == "threads":
        return lambda texts, report: runner.within(SECONDS, report).embed(texts)

    async def one(texts: Any, report: CallReport) -> Any:
        return await runner.asynchronous.within(SECONDS, report).embed(texts)

    return lambda texts, report: asyncio.run(one(texts, report))


def test_a_report_adds_up_what_its_calls_took(embed: Embed) -> None:
    before = time.monotonic()
    report = CallReport()
    embed(["w1 w2", "w3"], report)
    first = report.started
    assert (report.sequences, report.tokens) == (2, 3)
    assert before <= first <= time.monotonic()
    assert report.tokenize_seconds > 0
    assert report.wait_seconds >= 0
    assert report.run_seconds > 0
    assert first + report.tokenize_seconds + report.wait_seconds + report.run_seconds <= time.monotonic()
    once = report.run_seconds
    embed("w4", report)
    assert (report.sequences, report.tokens) == (3, 4)
    assert report.started == first
    assert report.run_seconds > once


def test_nothing_takes_no_sequences(embed: Embed) -> None:
    report = CallReport()
    embed([], report)
    assert (report.sequences, report.tokens, report.wait_seconds, report.run_seconds) == (0, 0, 0, 0)


def test_a_call_with_too_many_tokens_is_refused_and_says_how_many(embed: Embed) -> None:
    report = CallReport()
    with pytest.raises(InvalidInputError, match="have 11 tokens together, 10 are allowed; send fewer"):
        embed(["w1 " * 5, "w1 " * 6], report)
    assert (report.sequences, report.tokens, report.run_seconds) == (2, 11, 0)
    embed(["w1 " * 5, "w1 " * 5], report)
    assert (report.sequences, report.tokens) == (4, 21)


def test_tokens_count_after_texts_were_cut(new_runner: Callable[..., BatchingRunner]) -> None:
    report = CallReport()
    new_runner(most_tokens=64).within(None, report).embed("w1 " * 1000)
    assert report.tokens == 64


@pytest.mark.parametrize("most_tokens", [0, -1, 1.5, True, "10"])
def test_the_limit_of_tokens_is_a_whole_number(new_runner: Callable[..., BatchingRunner], most_tokens: Any) -> None:
    with pytest.raises(InvalidInputError, match="most_tokens"):
        new_runner(most_tokens=most_tokens)


def test_waiting_and_running_are_told_apart(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner = new_runner()
    graph.hold()
    runs, waits = CallReport(), CallReport()
    before = time.monotonic()
    threads = [threading.Thread(target=runner.within(SECONDS, runs).embed, args=("w1",))]
    threads[0].start()
    graph.wait_until_begun()  # on all workers
    at_most = time.monotonic() - before
    threads.append(threading.Thread(target=runner.within(SECONDS, waits).embed, args=("w2",)))
    threads[1].start()
    until(lambda: counts(runner).waiting == 1)
    time.sleep(HELD)
    graph.open.set()
    for thread in threads:
        thread.join(SECONDS)
    assert runs.run_seconds >= HELD
    assert waits.wait_seconds >= HELD
    assert runs.wait_seconds <= at_most


def counts(runner: BatchingRunner) -> QueueCounts:
    state = runner.state
    assert isinstance(state, QueueCounts)
    return state


def test_what_did_not_run_has_no_time_of_it(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner = new_runner(most_waiting=1)
    graph.hold()
    threads = [threading.Thread(target=runner.embed, args=("w1",)) for _ in range(2)]
    threads[0].start()
    graph.wait_until_begun()
    threads[1].start()
    until(lambda: counts(runner).waiting == 1)
    refused, late = CallReport(), CallReport()
    with pytest.raises(QueueFullError):
        runner.within(SECONDS, refused).embed("w2")
    graph.open.set()
    for thread in threads:
        thread.join(SECONDS)
    graph.hold()
    threads = [threading.Thread(target=runner.embed, args=("w1",))]
    threads[0].start()
    until(lambda: counts(runner).running > 0 and not counts(runner).waiting)
    with pytest.raises(DeadlineExceededError):
        runner.within(HELD, late).embed("w2")
    graph.open.set()
    threads[0].join(SECONDS)
    assert refused == CallReport()  # before it was tokenized
    assert (late.sequences, late.tokens, late.wait_seconds, late.run_seconds) == (1, 1, 0, 0)


def test_each_run_is_reported(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    heard: list[BatchReport] = []
    runner = new_runner(on_batch=heard.append)
    runner.embed(["w1 w2 w3", "w4"])
    (report,) = heard
    assert (report.sequences, report.tokens, report.padded_tokens) == (2, 4, 6)
    assert report.seconds > 0
    graph.fail_on = 5
    with pytest.raises(ValueError, match="token 5"):
        runner.embed(["w5"])
    asyncio.run(_awaited(runner.asynchronous.embed("w6 w7")))
    assert [(report.sequences, report.tokens, report.padded_tokens) for report in heard[1:]] == [(1, 1, 1), (1, 2, 2)]
    assert counts(runner).batches == len(heard)
    assert counts(runner).padded_tokens == sum(report.padded_tokens for report in heard)


def test_who_has_a_result_finds_its_run_ended(new_runner: Callable[..., BatchingRunner]) -> None:
    seen: list[int] = []  # before results are handed out
    runner = new_runner(on_batch=lambda _: seen.append(counts(runner).running))
    runner.embed("w1")
    asyncio.run(_awaited(runner.asynchronous.embed("w2")))
    assert seen == [0, 0]


def test_callers_get_their_results_where_the_listener_fails(
    new_runner: Callable[..., BatchingRunner], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(report: BatchReport) -> None:
        raise RuntimeError("the meter is broken")

    runner = new_runner(on_batch=fail)
    np.testing.assert_array_equal(runner.embed("w1 w2"), [vector("w1 w2")])  # in this thread
    np.testing.assert_array_equal(asyncio.run(_awaited(runner.asynchronous.embed("w3"))), [vector("w3")])  # a worker's
    assert [record.getMessage() for record in caplog.records] == ["on_batch failed"] * 2
    assert "the meter is broken" in caplog.text
    assert runner.close(timeout=SECONDS)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
