"""runtime/batching.py: batches hold every text once and stay small; results keep the caller's order."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime import pool
from onnxpress.runtime.batching import TOKENS_PER_BATCH, SideBySide, plan_batches, tokens_per_batch
from onnxpress.runtime.errors import ForkError, OnnxpressError
from tests.waiting import no_thread

LENGTHS = st.lists(st.integers(1, 600), max_size=80)


@given(LENGTHS, st.integers(1, 1000))
def test_a_plan_holds_every_index_once_within_the_budget_longest_first(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    planned = [lengths[index] for batch in batches for index in batch]
    assert planned == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 1000))
def test_a_plan_closes_a_batch_only_when_the_next_text_does_not_fit(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_equal_lengths_keep_their_order() -> None:
    assert plan_batches([3, 3, 3, 3], 6) == [[0, 1], [2, 3]]


def test_no_texts_make_no_batches() -> None:
    assert plan_batches([], 512) == []


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80), st.integers(1, 8))
def test_the_budget_divides_the_tokens_evenly_among_the_workers(lengths: list[int], workers: int) -> None:
    budget = tokens_per_batch(lengths, workers)
    assert 64 <= budget <= TOKENS_PER_BATCH
    rounds = math.ceil(sum(lengths) / (TOKENS_PER_BATCH * workers))
    assert rounds * workers * budget >= sum(lengths)
    if budget > 64:  # no smaller budget would do in as many rounds
        assert rounds * workers * (budget - 1) < sum(lengths)


def test_few_tokens_are_shared_by_two_workers_but_not_cut_into_tiny_batches() -> None:
    assert tokens_per_batch([100] * 4, workers=2) == 200
    assert tokens_per_batch([10] * 4, workers=2) == 64
    assert tokens_per_batch([128] * 5, workers=2) == 320
    assert tokens_per_batch([512] * 8, workers=2) == TOKENS_PER_BATCH


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_batches(workers: int) -> None:
    side_by_side = SideBySide(workers)
    first_may_end = threading.Event()

    def slow_first(batch: list[int]) -> int:
        if batch == [0] and workers > 1:
            assert first_may_end.wait(10)  # the first batch ends after the last
        if batch == [9]:
            first_may_end.set()
        return batch[0] ** 2

    assert side_by_side.map(slow_first, [[index] for index in range(10)]) == [index**2 for index in range(10)]
    side_by_side.close()


def test_batches_run_on_as_many_threads_as_there_are_workers() -> None:
    side_by_side = SideBySide(2)
    both = threading.Barrier(2, timeout=10)
    names = side_by_side.map(lambda batch: (both.wait(), threading.current_thread().name)[1], [[0], [1]])
    assert len(set(names)) == 2
    assert all(name.startswith("onnxpress") for name in names)
    side_by_side.close()


def test_one_batch_runs_in_the_calling_thread() -> None:
    side_by_side = SideBySide(4)
    assert side_by_side.map(lambda batch: threading.current_thread(), [[0, 1]]) == [threading.current_thread()]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_reaches_the_caller_and_the_workers_go_on(workers: int) -> None:
    side_by_side = SideBySide(workers)

    def fail_on_two(batch: list[int]) -> int:
        if batch == [2]:
            raise KeyError("two")
        return batch[0]

    with pytest.raises(KeyError, match="two"):
        side_by_side.map(fail_on_two, [[0], [1], [2], [3]])
    assert side_by_side.map(fail_on_two, [[0], [1]]) == [0, 1]
    side_by_side.close()


def test_threads_end_on_close_and_start_again() -> None:
    program = """
import threading
from onnxpress.runtime.batching import SideBySide

side_by_side = SideBySide(2)
side_by_side.close()  # nothing was started
for _ in range(2):
    assert side_by_side.map(len, [[0], [1, 2]]) == [1, 2]
    side_by_side.close()
assert threading.enumerate() == [threading.main_thread()]
"""
    # By itself: models of other tests hold the same threads.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_thread_that_the_system_does_not_give_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_process", pool._Process())
    lease = pool.Lease(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            lease.map(str, [1])
    assert lease.map(str, [2, 3]) == ["2", "3"]
    lease.close()


def test_many_callers_share_the_workers() -> None:
    side_by_side = SideBySide(2)
    results: dict[int, list[int]] = {}

    def call(caller: int) -> None:
        results[caller] = side_by_side.map(lambda batch: batch[0] + caller, [[index] for index in range(20)])

    callers = [threading.Thread(target=call, args=(1000 * number,)) for number in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert results == {caller: [index + caller for index in range(20)] for caller in range(0, 6000, 1000)}
    side_by_side.close()


def test_another_process_is_refused_with_both_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded_in = os.getpid()
    side_by_side = SideBySide(2)
    monkeypatch.setattr("onnxpress.runtime.processes.os.getpid", lambda: loaded_in + 1)
    with pytest.raises(ForkError, match=rf"loaded in process {loaded_in} .*fork {loaded_in + 1}") as caught:
        side_by_side.map(len, [[0], [1]])
    assert isinstance(caught.value, OnnxpressError)
    assert isinstance(caught.value, RuntimeError)
