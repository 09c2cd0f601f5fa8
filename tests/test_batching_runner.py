"""runtime/runner.py: calls of many threads and tasks that run together."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxpress
from onnxpress.runtime import pool
from onnxpress.runtime.batching import RUN_TOKENS, choose_batch
from onnxpress.runtime.errors import (
    ClosedError,
    DeadlineExceededError,
    ForkError,
    InvalidInputError,
    OnnxpressError,
    QueueFullError,
)
from onnxpress.runtime.queue_counts import QueueCounts
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.tasks import Embedder
from onnxpress.runtime.tokenizer import Tokenizer
from tests.gated_graph import SECONDS, WORDS, GatedGraph, graph, make_model, new_runner, vector
from tests.waiting import no_thread, until

__all__ = ["graph", "new_runner"]  # fixtures


class Threads:
    """Calls in threads of their own, and what each returned or raised."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.results: list[Any] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> int:
        number = len(self.results)
        self.results.append(None)

        def run() -> None:
            try:
                self.results[number] = function(*arguments)
            except BaseException as error:  # noqa: BLE001
                self.results[number] = error

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        return number

    def join(self) -> list[Any]:
        for thread in self.threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        return self.results


def counts(runner: BatchingRunner) -> QueueCounts:
    state = runner.state
    assert isinstance(state, QueueCounts)
    return state


def keep_busy(runner: BatchingRunner, graph: GatedGraph, threads: Threads, text: str = "w1") -> None:
    """Hold a run on every worker."""
    graph.hold()
    threads.start(runner.embed, text)
    graph.wait_until_begun()  # alone, with all workers


# Results


def test_one_caller_runs_in_its_own_thread_with_all_workers(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner = new_runner()
    for _ in range(3):
        np.testing.assert_array_equal(runner.embed("w1 w2"), [vector("w1 w2")])
    assert graph.runs == [(1, True, threading.current_thread().name)] * 3
    assert counts(runner).waited_seconds < SECONDS


def test_results_are_those_of_a_direct_call(tiny_bundle: Path) -> None:
    model = onnxpress.load(tiny_bundle, variant="fp32", threads=2, task="feature-extraction")
    rng = random.Random(5)
    texts = [" ".join(rng.choices(["the", "order", "cat", "dog", "where"], k=rng.randint(0, 50))) for _ in range(120)]
    expected = model.embed(texts)
    with BatchingRunner(model) as runner:
        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(runner.embed, texts))
        several = runner.embed(texts)

        async def ask() -> list[Any]:
            return await asyncio.gather(*map(runner.asynchronous.embed, texts))

        awaited = asyncio.run(ask())
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    np.testing.assert_allclose(several, expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(awaited), expected, atol=1e-5)
    model.close()


def test_calls_that_wait_run_together_and_each_gets_its_own(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    texts = [f"w{number} w2 w3" for number in range(10)]
    for text in texts:
        threads.start(runner.embed, text)
    until(lambda: counts(runner).waiting == 10)
    graph.open.set()
    results = threads.join()
    for text, found in zip(["w1", *texts], results, strict=True):
        np.testing.assert_array_equal(found, [vector(text)])
    assert len(graph.runs) <= 3
    state = counts(runner)
    assert (state.calls, state.sequences, state.tokens, state.waiting, state.running) == (11, 11, 31, 0, 0)
    assert state.longest_wait_seconds > 0


def test_lists_options_and_nothing_at_all(new_runner: Callable[..., BatchingRunner]) -> None:
    runner = new_runner()
    np.testing.assert_array_equal(runner.embed(["w1", "w2 w3", ""]), [[1, 1], [5, 2], [0, 0]])
    assert runner.embed([]).shape == (0, 2)
    assert asyncio.run(_first(runner.asynchronous.embed([]))).shape == (0, 2)
    np.testing.assert_array_equal(runner.embed("w1", prompt="w2 "), [[3, 2]])


async def _first(awaitable: Any) -> Any:
    return await awaitable


def test_a_method_of_another_task_says_so(new_runner: Callable[..., BatchingRunner]) -> None:
    runner = new_runner()
    with pytest.raises(AttributeError, match="text-classification"):
        runner.classify("w1")
    with pytest.raises(AttributeError, match="text-generation"):
        runner.generate("w1")


# Which run together


@given(st.lists(st.integers(0, 600), min_size=1, max_size=80), st.integers(1, 600))
def test_a_batch_has_the_oldest_and_keeps_to_its_tokens(lengths: list[int], tokens: int) -> None:
    batch = choose_batch(lengths, tokens)
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    longest = max(lengths[index] for index in batch)
    assert len(batch) == 1 or len(batch) * longest <= tokens
    inside = sorted(lengths[index] for index in batch)
    outside = [lengths[index] for index in range(len(lengths)) if index not in batch]
    assert not [length for length in outside if inside[0] < length < inside[-1]]


def test_texts_of_other_lengths_are_left_for_a_run_of_their_own() -> None:
    assert choose_batch([10, 60, 10, 60, 10], 512) == [0, 2, 4]
    assert choose_batch([60, 10, 60], 512) == [0, 2]
    assert choose_batch([10, 9, 8], 512) == [0, 1, 2]  # less padding than RUN_TOKENS
    assert choose_batch([10, 10 + RUN_TOKENS + 1], 512) == [0]


def test_nobody_starves_while_others_fill_batches(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    odd = threads.start(runner.embed, " ".join(["w1"] * 60))
    until(lambda: counts(runner).waiting == 1)
    for _ in range(200):
        threads.start(runner.embed, "w1 w2")
    until(lambda: counts(runner).waiting == 201)
    graph.open.set()
    results = threads.join()
    np.testing.assert_array_equal(results[odd], [[60, 60]])
    assert [60] in graph.lengths[1:3]  # first of all that waited; two workers began at once


def test_a_wait_fills_batches_where_it_is_wanted(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(max_wait_seconds=SECONDS, tokens_per_batch=64), Threads()
    for _ in range(32):
        threads.start(runner.embed, "w1 w2")  # 64 tokens together
    threads.join()
    assert graph.runs[0][0] > 1
    assert sum(size for size, _, _ in graph.runs) == 32


# Limits


def test_a_full_queue_refuses_and_serves_later(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(most_waiting=3), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.embed, ["w1", "w2", "w3"])
    until(lambda: counts(runner).waiting == 3)
    with pytest.raises(QueueFullError, match="3 sequences are waiting"):
        runner.embed("w4")
    with pytest.raises(QueueFullError):
        asyncio.run(_first(runner.asynchronous.embed("w4")))
    graph.open.set()
    threads.join()
    np.testing.assert_array_equal(runner.embed("w4"), [[4, 1]])
    assert counts(runner).refused == 2


def test_a_full_queue_refuses_before_texts_are_read(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, threads = new_runner(most_waiting=1), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.embed, "w2")
    until(lambda: counts(runner).waiting == 1)
    monkeypatch.setattr(Tokenizer, "encode", lambda *arguments, **options: pytest.fail("it was tokenized"))
    with pytest.raises(QueueFullError, match="1 sequences are waiting and 1 may"):
        runner.embed("w4")
    assert counts(runner).refused == 1
    graph.open.set()
    threads.join()


def test_what_would_hardly_be_served_in_its_own_time_is_refused(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.within(2000).embed, "w2")
    until(lambda: counts(runner).waiting == 1)
    next(iter(runner._queue._items)).call.since -= 1900
    threads.start(runner.embed, "w3")  # may wait for ever, whatever time others have
    threads.start(runner.within(4000).embed, "w4")
    until(lambda: counts(runner).waiting == 3)
    with pytest.raises(QueueFullError, match=r"wait 1\.9e\+03 seconds for their turn.* of the 3000 seconds allowed"):
        runner.within(3000).embed("w5")
    with pytest.raises(QueueFullError, match="seconds allowed"):
        asyncio.run(_first(runner.asynchronous.within(3000).embed("w5")))
    graph.open.set()
    answers = threads.join()
    np.testing.assert_array_equal(np.concatenate(answers), [[1, 1], [2, 1], [3, 1], [4, 1]])


def test_a_call_larger_than_the_queue_is_served_when_nothing_waits(new_runner: Callable[..., BatchingRunner]) -> None:
    assert new_runner(most_waiting=2).embed(["w1"] * 50).shape == (50, 2)


def test_a_deadline_ends_the_wait_and_frees_the_place(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    with pytest.raises(DeadlineExceededError, match="time allowed") as caught:
        runner.within(0.01).embed("w2")
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(DeadlineExceededError):
        asyncio.run(_first(runner.asynchronous.within(0.01).embed("w2")))
    state = counts(runner)
    assert (state.waiting, state.expired) == (0, 2)
    graph.open.set()
    threads.join()
    assert sum(size for size, _, _ in graph.runs) == 1  # what was late never ran
    np.testing.assert_array_equal(runner.within(SECONDS).embed("w2"), [[2, 1]])


def test_what_is_late_already_is_not_run(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner = new_runner()
    with pytest.raises(DeadlineExceededError):
        runner.within(1e-9).embed("w2")
    with pytest.raises(DeadlineExceededError):
        asyncio.run(_first(runner.asynchronous.within(1e-9).embed("w2")))
    assert (graph.runs, counts(runner).expired) == ([], 2)


def test_a_wait_for_others_ends_before_a_deadline(new_runner: Callable[..., BatchingRunner]) -> None:
    runner, threads = new_runner(max_wait_seconds=60), Threads()
    threads.start(runner.embed, "w1 w2")
    until(lambda: counts(runner).waiting == 1)
    np.testing.assert_array_equal(runner.within(4).embed("w3"), [[3, 1]])
    np.testing.assert_array_equal(threads.join()[0], [[3, 2]])


@pytest.mark.parametrize("seconds", [1e10, 10**400, float("inf")])
def test_any_time_may_be_allowed(new_runner: Callable[..., BatchingRunner], graph: GatedGraph, seconds: float) -> None:
    runner, threads = new_runner(seconds=seconds), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.embed, "w2")
    threads.start(asyncio.run, _first(runner.asynchronous.embed("w3")))
    until(lambda: counts(runner).waiting == 2)
    threads.start(lambda: runner.close(timeout=seconds))
    graph.open.set()
    *answers, closed = threads.join()
    np.testing.assert_array_equal(np.concatenate(answers), [[1, 1], [2, 1], [3, 1]])
    assert closed


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), True, "1"])
def test_the_time_allowed_is_a_number_of_seconds(new_runner: Callable[..., BatchingRunner], seconds: Any) -> None:
    with pytest.raises(InvalidInputError, match="above 0"):
        new_runner().within(seconds)


@pytest.mark.parametrize(
    "options",
    [
        {"most_waiting": 0},
        {"tokens_per_batch": 1.5},
        {"max_wait_seconds": -1},
        {"max_wait_seconds": "x"},
        {"most_tokens": "9"},
        {"on_batch": 3},
    ],
    ids=str,
)
def test_arguments_are_numbers_and_functions(
    new_runner: Callable[..., BatchingRunner], options: dict[str, Any]
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InvalidInputError, match=f"^{name} is {value!r}; give a "):
        new_runner(**options)


def test_a_runner_needs_a_model() -> None:
    with pytest.raises(InvalidInputError, match=r"model is 'bundle'; give what onnxpress\.load gave"):
        BatchingRunner("bundle")  # type: ignore[arg-type]


def test_a_cancelled_task_leaves_the_queue(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)

    async def cancel_one() -> None:
        task = asyncio.ensure_future(runner.asynchronous.embed(["w5", "w6"]))
        other = asyncio.ensure_future(runner.asynchronous.embed("w7"))
        while counts(runner).waiting < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state = counts(runner)
        assert (state.waiting, state.cancelled) == (1, 1)
        graph.open.set()
        np.testing.assert_array_equal(await other, [[7, 1]])

    asyncio.run(cancel_one())
    threads.join()
    assert sum(size for size, _, _ in graph.runs) == 2


def test_a_task_cancelled_while_it_runs_is_not_missed(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner = new_runner()
    graph.hold()

    async def cancel_running() -> None:
        task = asyncio.ensure_future(runner.asynchronous.embed("w5"))
        while not graph.runs:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        graph.open.set()
        np.testing.assert_array_equal(await runner.asynchronous.embed("w6"), [[6, 1]])

    asyncio.run(cancel_running())


# Errors


def test_what_cannot_be_used_fails_alone(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.embed, "w2")
    bad = threads.start(runner.embed, 5)
    threads.threads[bad].join(SECONDS)  # at once, while the others wait
    assert isinstance(threads.results[bad], InvalidInputError | TypeError)
    graph.open.set()
    np.testing.assert_array_equal(threads.join()[1], [[2, 1]])


def test_an_error_of_a_run_reaches_only_the_call_that_causes_it(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner, threads = new_runner(), Threads()
    graph.fail_on = 13
    keep_busy(runner, graph, threads)
    for number in (11, 12, 13, 14, 15):
        threads.start(runner.embed, [f"w{number}", f"w{number}"])
    until(lambda: counts(runner).waiting == 10)
    graph.open.set()
    _, *results = threads.join()
    assert [str(result) for result in results if isinstance(result, Exception)] == ["token 13"]
    for number, found in zip((11, 12, 14, 15), results[:2] + results[3:], strict=True):
        np.testing.assert_array_equal(found, [[number, 1]] * 2)
    assert counts(runner).failed == 1
    with pytest.raises(ValueError, match="token 13"):  # also where it runs in the caller's thread
        runner.embed("w13")
    with pytest.raises(ValueError, match="token 13"):
        asyncio.run(_first(runner.asynchronous.embed("w13")))
    np.testing.assert_array_equal(runner.embed("w1"), [[1, 1]])


class CtrlC:
    """A lock that the main thread has given back so many times when Ctrl-C comes."""

    def __init__(self, lock: Any, after: int) -> None:
        self.lock, self.left = lock, after

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        if threading.current_thread() is threading.main_thread():
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("max_wait", [0, 0.001], ids=["run here", "run by a worker"])
def test_ctrl_c_as_a_lock_is_given_back_hurts_nobody(
    new_runner: Callable[..., BatchingRunner], max_wait: float
) -> None:
    runner = new_runner(max_wait_seconds=max_wait)
    queue: Any = runner._serving
    interrupted = 0
    for after in range(1, 8):
        lock, queue._lock = queue._lock, CtrlC(queue._lock, after)
        try:
            runner.embed("w1")
        except KeyboardInterrupt:
            interrupted += 1
        queue._lock = lock
        until(lambda: queue._free == queue._slots)
        np.testing.assert_array_equal(runner.embed("w2"), [[2, 1]])
    assert interrupted == (2 if max_wait else 5)


def test_ctrl_c_while_it_closes_leaves_nobody_waiting(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph
) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.embed, "w2")
    until(lambda: counts(runner).waiting == 1)
    queue: Any = runner._serving
    changed, queue._changed = queue._changed, CtrlC(queue._lock, 1)
    queue._changed.notify_all = changed.notify_all
    with pytest.raises(KeyboardInterrupt):
        runner.close(drain=False)
    queue._changed = changed
    threads.threads[1].join(SECONDS)
    assert isinstance(threads.results[1], ClosedError)
    graph.open.set()
    threads.join()


def test_where_there_are_no_more_threads_the_callers_own_works(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_process", pool._Process())
    runner = new_runner()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        assert asyncio.run(_first(runner.asynchronous.embed("w1"))).tolist() == [[1, 1]]
    assert asyncio.run(_first(runner.asynchronous.embed("w2"))).tolist() == [[2, 1]]
    own = threading.current_thread().name
    assert [name == own for *_, name in graph.runs] == [True, False]


# The end


def test_closing_finishes_what_was_taken(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    for number in range(5):
        threads.start(runner.embed, f"w{number}")
    until(lambda: counts(runner).waiting == 5)
    assert not runner.close(timeout=0.01)
    with pytest.raises(ClosedError, match="closed"):
        runner.embed("w1")
    with pytest.raises(ClosedError):
        asyncio.run(_first(runner.asynchronous.embed("w1")))
    graph.open.set()
    assert runner.close(timeout=SECONDS)
    for number, found in enumerate(threads.join()[1:]):
        np.testing.assert_array_equal(found, [[number, 1]])


def test_closing_may_cancel_what_waits(new_runner: Callable[..., BatchingRunner], graph: GatedGraph) -> None:
    runner, threads = new_runner(), Threads()
    keep_busy(runner, graph, threads)
    threads.start(runner.embed, "w2")
    until(lambda: counts(runner).waiting == 1)
    assert not runner.close(drain=False, timeout=0)
    threads.threads[1].join(SECONDS)
    graph.open.set()
    first, second = threads.join()
    np.testing.assert_array_equal(first, [[1, 1]])  # it ran
    assert isinstance(second, ClosedError)
    assert runner.close(timeout=SECONDS)


def test_a_closed_runner_leaves_the_model_open(graph: GatedGraph, tmp_path: Path) -> None:
    model = make_model(tmp_path, graph)
    with BatchingRunner(model) as runner:
        runner.embed("w1")
    with pytest.raises(ClosedError):
        runner.embed("w1")
    np.testing.assert_array_equal(model.embed("w1"), [[1, 1]])
    assert BatchingRunner(model).embed("w1").shape == (1, 2)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads is the point
def test_a_fork_is_told_so_and_the_parent_goes_on(
    new_runner: Callable[..., BatchingRunner], graph: GatedGraph, tmp_path: Path
) -> None:
    runner = new_runner()
    runner.embed(["w1"] * 3)
    asyncio.run(_first(runner.asynchronous.embed("w1")))  # there are threads
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            runner.close()
            with BatchingRunner(make_model(tmp_path, GatedGraph())) as own:
                assert asyncio.run(_first(own.asynchronous.embed("w9"))).tolist() == [[9, 1]]
            runner.embed("w1")
        except ForkError as error:
            said = str(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "fork" in said
    np.testing.assert_array_equal(runner.embed("w1"), [[1, 1]])


EXIT = """
import sys, threading, time
sys.path[:0] = {paths!r}
import onnxpress
from onnxpress.runtime.runner import BatchingRunner

runner = BatchingRunner(onnxpress.load({bundle!r}, variant="fp32", threads=2))

def ask():
    while True:
        runner.embed(["the cat " * 20] * 20)

for _ in range(8):
    threading.Thread(target=ask, daemon=True).start()
while runner.state.batches < 5 or not runner.state.waiting:
    time.sleep(0.001)
print("leaving", flush=True)
"""


def test_the_interpreter_ends_while_calls_wait(tiny_bundle: Path) -> None:
    program = EXIT.format(paths=sys.path, bundle=str(tiny_bundle))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "leaving\n"), done.stderr


# Documents

PAGE = Path(__file__).parent.parent / "docs" / "embedding_in_a_service.md"


def test_the_examples_for_services_run(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, loop, *writers = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("bundle").symlink_to(tiny_bundle)
    for code, name in ((threads, "vectors"), (loop, "vector")):
        assert len([line for line in code.splitlines() if line]) <= 10
        names: dict[str, Any] = {}
        exec(compile(code, PAGE.name, "exec"), names)
        assert np.isfinite(names[name]).all()
        names["model" if name == "vectors" else "runner"].close()
    for writer in writers:  # what they call is in test_generation_limits.py
        compile(writer, PAGE.name, "exec")


def test_every_error_of_a_runner_is_explained() -> None:
    page = PAGE.read_text()
    for error in (InvalidInputError, QueueFullError, DeadlineExceededError, ClosedError, ForkError):
        assert f"| `{error.__name__}` |" in page


# Threads


def test_models_share_the_threads_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_process", pool._Process())  # apart from what other tests hold
    before = set(threading.enumerate())
    graphs = [GatedGraph(workers=3) for _ in range(4)]
    runners = [BatchingRunner(make_model(tmp_path, graph)) for graph in graphs]

    async def ask_all() -> None:
        await asyncio.gather(*(runner.asynchronous.embed(f"w{n}") for runner in runners for n in range(20)))

    asyncio.run(ask_all())
    assert len(set(threading.enumerate()) - before) <= 3
    names = {name for graph in graphs for _, _, name in graph.runs}
    assert names <= {"onnxpress-0", "onnxpress-1", "onnxpress-2"}
    for runner in runners[1:]:
        runner.close()
    asyncio.run(_first(runners[0].asynchronous.embed("w1")))
    runners[0].close()
    assert not set(threading.enumerate()) - before


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_a_second_model_adds_no_worker_threads(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_process", pool._Process())

    def threads() -> int:
        return sum(1 for _ in Path("/proc/self/task").iterdir())

    def workers() -> set[threading.Thread]:
        return {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("onnxpress-")}

    before = set(threading.enumerate())

    def serve() -> tuple[Embedder, BatchingRunner]:
        model = onnxpress.load(tiny_bundle, variant="fp32", threads=4, task="feature-extraction")
        runner = BatchingRunner(model)
        model.embed(["the cat " * 20] * 200)
        runner.embed(["the cat " * 20] * 200)
        return model, runner

    first = serve()
    with_one = threads()
    second = serve()
    # onnxruntime's own three, which split an operator, are of each model; the four workers are there once.
    assert threads() - with_one == 3
    assert len(workers()) == 4
    for model, runner in (first, second):
        runner.close()
        model.close()
    assert not workers()


def test_a_busy_model_makes_room_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_process", pool._Process())
    busy, other = GatedGraph(workers=1), GatedGraph(workers=1)
    turns: list[int] = []
    run = other.run

    def noting(feeds: Any, alone: bool) -> Any:
        turns.append(len(busy.runs))
        return run(feeds, alone)

    monkeypatch.setattr(other, "run", noting)
    first, second = (BatchingRunner(make_model(tmp_path, graph), tokens_per_batch=1) for graph in (busy, other))
    busy.hold()

    async def ask() -> None:
        many = [asyncio.ensure_future(first.asynchronous.embed("w1")) for _ in range(50)]
        while not busy.runs:
            await asyncio.sleep(0.001)
        one = asyncio.ensure_future(second.asynchronous.embed("w2"))
        await asyncio.sleep(0)
        busy.open.set()
        await one
        assert turns[0] < 50
        await asyncio.gather(*many)

    asyncio.run(ask())
    assert first.close()
    assert second.close()


def test_a_forgotten_lease_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_process", pool._Process())
    before = set(threading.enumerate())
    lease = pool.Lease(2)
    assert lease.map(str, range(5)) == ["0", "1", "2", "3", "4"]
    del lease
    until(lambda: not set(threading.enumerate()) - before)


# Everything at once


@pytest.mark.parametrize("seed", [1, 2])
def test_no_call_is_lost(new_runner: Callable[..., BatchingRunner], seed: int) -> None:  # noqa: C901
    """Thousands of calls of threads and tasks, with deadlines, cancellations, a short queue and errors."""
    runner = new_runner(most_waiting=40)
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def record(text: str, found: Any) -> None:
        if isinstance(found, BaseException):
            kind = type(found).__name__
        else:
            kind = "right" if found.tolist() == [vector(text)] else "wrong"
        with lock:
            outcomes[kind] += 1

    def text_of(rng: random.Random) -> str:
        return " ".join(f"w{rng.randrange(WORDS)}" for _ in range(rng.choice([1, 2, 3, 5, 30, 60])))

    def thread(number: int) -> None:
        rng = random.Random(1000 * seed + number)
        for _ in range(100):
            text = text_of(rng)
            face = runner.within(rng.choice([0.0001, 0.01])) if rng.random() < 0.3 else runner
            try:
                record(text, face.embed(text))
            except OnnxpressError as error:
                record(text, error)

    async def task(rng: random.Random) -> None:
        text = text_of(rng)
        job = asyncio.ensure_future(runner.asynchronous.embed(text))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 0.002)
            job.cancel()
        try:
            record(text, await job)
        except (asyncio.CancelledError, OnnxpressError) as error:
            record(text, error)

    async def tasks() -> None:
        rng = random.Random(seed)
        for _ in range(20):
            await asyncio.gather(*(task(rng) for _ in range(50)))

    threads = Threads()
    for number in range(10):
        threads.start(thread, number)
    threads.start(asyncio.run, tasks())
    assert not [result for result in threads.join() if isinstance(result, BaseException)]
    assert sum(outcomes.values()) == 2000
    assert outcomes["wrong"] == 0
    assert outcomes["right"] > 200
    assert set(outcomes) <= {"right", "DeadlineExceededError", "QueueFullError", "CancelledError"}
    state = counts(runner)
    assert state.waiting == 0
    assert state.refused == outcomes["QueueFullError"]
    assert state.expired >= outcomes["DeadlineExceededError"]  # a task may be cancelled just after
