"""runtime/generation/: the cache, the decoder, the scheduler and the engine, on a tiny graph with a numpy reference."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from onnxpress.runtime.errors import ForkError, InvalidBundleError, InvalidInputError, QueueFullError
from onnxpress.runtime.generation import replay
from onnxpress.runtime.generation.cache import CacheLayout, CacheMemoryError, KeyValueCache, shared_prefix
from onnxpress.runtime.generation.decoder import Decoder
from onnxpress.runtime.generation.engine import Engine
from onnxpress.runtime.generation.perplexity import Window, log_probabilities_of
from onnxpress.runtime.generation.preparing import Prepared
from onnxpress.runtime.generation.replay import Replay
from onnxpress.runtime.generation.requests import Delta, Generation, Request
from onnxpress.runtime.generation.rows import Rows
from onnxpress.runtime.generation.scheduler import Scheduler
from onnxpress.runtime.generation.streams import AsyncStream, Stream
from onnxpress.runtime.manifest import GenerationSettings, SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from tests.decoder_graph import TinyDecoder
from tests.waiting import LONGEST, no_thread, until

TINY = TinyDecoder()
END = 3  # ends an answer in these tests


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = TINY.save(tmp_path_factory.mktemp("decoder") / "model.onnx")
    return make_session(path, SessionSettings(), settings=ServingSettings(1))


@pytest.fixture
def new_decoder(session: onnxruntime.InferenceSession) -> Callable[..., Decoder]:
    def make(**options: Any) -> Decoder:
        return Decoder(session, KeyValueCache(TINY.layout, TINY.context, **options))

    return make


@pytest.fixture
def new_engine(new_decoder: Callable[..., Decoder]) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(*, most_rows: int = 8, limit_bytes: int | None = None, **options: Any) -> Engine:
        engines.append(Engine(new_decoder(most_rows=most_rows, limit_bytes=limit_bytes), **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "onnxpress-generation"]


@dataclasses.dataclass
class Chosen:
    token_id: int
    logprob: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()


class Greedy:
    """Chooses the best token, and remembers how close the second was."""

    def __init__(self, fail_after: int | None = None, delay: float = 0.0) -> None:
        self.margins: list[float] = []
        self.fail_after = fail_after
        self.delay = delay

    def next(self, logits: npt.NDArray[np.float32]) -> Chosen:
        if self.fail_after is not None and len(self.margins) >= self.fail_after:
            raise ValueError("this constraint allows no token")
        time.sleep(self.delay)
        second, best = np.sort(logits)[-2:]
        self.margins.append(float(best - second) / float(np.abs(logits).max()))
        return Chosen(int(logits.argmax()))


class Held(Greedy):
    """Chooses once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go = threading.Event()

    def next(self, logits: npt.NDArray[np.float32]) -> Chosen:
        assert self.may_go.wait(LONGEST)
        return super().next(logits)


class Numbers:
    """Text of a token is its number."""

    def __init__(self, end: int | None = END) -> None:
        self.stop_at = end

    def feed(self, token_id: int) -> tuple[str, bool]:
        stops = token_id == self.stop_at
        return ("" if stops else f"{token_id} ", stops)

    def end(self) -> str:
        return "."


def request(prompt: Sequence[int], most_new: int = 8, **options: Any) -> Request:
    chooser = options.pop("chooser", None) or Greedy()
    return Request(list(prompt), most_new, chooser, options.pop("text", None) or Numbers(), **options)


def alone(prompt: Sequence[int], most_new: int, end: int | None = END) -> list[int]:
    """The answer that the numpy model gives."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most_new:
        tokens.append(int(TINY.logits(tokens).argmax()))
        if tokens[-1] == end:
            break
    return tokens[len(prompt) :]


def assert_same(got: Sequence[int], expected: Sequence[int], chooser: Greedy) -> None:
    """Equal, up to the first token where the two best were as good as equal."""
    for place, (a, b) in enumerate(zip(got, expected, strict=False)):
        if a != b:
            assert chooser.margins[place] < 1e-4, (place, list(got), list(expected))
            return
    assert len(got) == len(expected)


def prompts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(4, 100) for _ in range(numbers.randint(1, longest))] for _ in range(count)]


# The cache


def test_the_cache_grows_in_steps_and_keeps_what_rows_hold() -> None:
    cache = KeyValueCache(TINY.layout, 1000, most_rows=6)
    versions = set()
    for length in range(1, 1001):
        cache.reserve(2, length, keep=range(cache.rows))
        if cache.version not in versions:
            for number, buffer in enumerate(cache.buffers.values()):
                if len(versions) == 0:
                    buffer[1, :, :5] = number + 1
                np.testing.assert_array_equal(buffer[1, :, :5], number + 1)
            cache.tokens[1] = [7, 7, 7, 7, 7]
        versions.add(cache.version)
    assert len(versions) == 4  # 128, 256, 512, 1000
    assert (cache.rows, cache.capacity) == (2, 1000)
    assert cache.size_bytes == sum(buffer.nbytes for buffer in cache.buffers.values())


def test_rows_are_put_in_the_order_asked_for_and_the_last_are_dropped() -> None:
    cache = KeyValueCache(TINY.layout, 256, limit_bytes=TINY.layout.size_bytes(2, 256), most_rows=4)
    cache.reserve(4, 100, keep=[])
    for row in range(4):
        cache.tokens[row] = [row] * 3
        for buffer in cache.buffers.values():
            buffer[row, :, :3] = row
    assert cache.reserve(2, 200, keep=[3, 1, 0]) == [3, 1]
    assert cache.tokens == [[3] * 3, [1] * 3]
    assert all((buffer[0, :, :3] == 3).all() and (buffer[1, :, :3] == 1).all() for buffer in cache.buffers.values())


def test_swapping_and_copying_rows_moves_keys_and_values() -> None:
    cache = KeyValueCache(TINY.layout, 64, most_rows=4)
    cache.reserve(3, 64, keep=[])
    for row, length in enumerate((4, 9, 0)):
        cache.tokens[row] = [row] * length
        for buffer in cache.buffers.values():
            buffer[row, :, :length] = row + 1
    cache.swap(0, 1)
    cache.swap(2, 0)
    cache.copy(1, 0, 3)
    assert cache.tokens[:3] == [[0] * 3, [0] * 4, [1] * 9]
    for buffer in cache.buffers.values():
        assert (buffer[0, :, :3] == 1).all()
        assert (buffer[1, :, :4] == 1).all()
        assert (buffer[2, :, :9] == 2).all()


def test_a_cache_beyond_the_limit_is_refused_before_it_is_allocated() -> None:
    cache = KeyValueCache(TINY.layout, 256, limit_bytes=TINY.layout.size_bytes(1, 100))
    with pytest.raises(CacheMemoryError, match=r"101 tokens need 0\.0 MiB of cache.*are allowed"):
        cache.require(101)
    cache.require(100)
    cache.reserve(1, 100, keep=[])
    assert cache.size_bytes <= cache.limit_bytes


def test_memory_the_system_does_not_have_is_an_error_that_leaves_the_cache_as_it_was() -> None:
    cache = KeyValueCache(TINY.layout, 2**40, limit_bytes=2**60)
    cache.reserve(1, 10, keep=[])
    before = cache.buffers["past.0.key"]
    with pytest.raises(CacheMemoryError, match="the system has no"):
        cache.reserve(1, 2**40, keep=[0])
    assert cache.buffers["past.0.key"] is before


def test_the_size_of_a_cache_counts_all_layers_and_its_type() -> None:
    layout = CacheLayout((2, 4), (8, 16), "float16")
    assert layout.token_bytes == 2 * (2 * 8 + 4 * 16) * 2
    assert layout.size_bytes(3, 5) == 15 * layout.token_bytes


def test_shared_prefixes() -> None:
    assert [shared_prefix([1, 2, 3], other) for other in ([], [2], [1], [1, 2, 4], [1, 2, 3, 4])] == [0, 0, 1, 2, 3]


# The decoder


def test_all_ways_to_run_a_prompt_give_the_reference_logits(new_decoder: Callable[..., Decoder]) -> None:
    decoder = new_decoder()
    decoder.cache.reserve(4, 64, keep=[])
    a, b, c = prompts(3, seed=5)

    def check(logits: npt.NDArray[np.float32], *expected: list[int]) -> None:
        for row, tokens in zip(logits, expected, strict=True):
            np.testing.assert_allclose(row, TINY.logits(tokens), atol=2e-5)

    check(decoder.start(0, [a, b]), a, b)
    for start in range(0, len(c), 4):
        logits = decoder.extend(2, c[start : start + 4])
    check(logits, c)
    d = list(range(10, 19))
    check(decoder.extend(3, d[:5], last=2), d[:4], d[:5])
    check(decoder.extend(3, d[5:8], last=3), d[:6], d[:7], d[:8])
    check(decoder.step(0, [7, 8, 9]), [*a, 7], [*b, 8], [*c, 9])
    check(decoder.step(1, [5, 6]), [*b, 8, 5], [*c, 9, 6])
    decoder.cache.reserve(4, 200, keep=[2, 0, 1])
    check(decoder.step(0, [4, 5, 6]), [*c, 9, 6, 4], [*a, 7, 5], [*b, 8, 5, 6])


def test_a_cache_of_another_layout_than_the_graph_is_refused(session: onnxruntime.InferenceSession) -> None:
    with pytest.raises(InvalidBundleError, match=r"past\.1\.key.*\(2, 8, 'float32'\).*\(2, 16, 'float32'\)"):
        Decoder(session, KeyValueCache(CacheLayout((2, 2), (8, 16)), 64))


def test_a_graph_that_does_not_take_positions_of_logits_is_refused(tmp_path: Path) -> None:
    model = onnx.load(TINY.save(tmp_path / "model.onnx"))
    for names in (value.input for value in model.graph.node):
        names[:] = ["last_index" if name == "logit_index" else name for name in names]
    next(value for value in model.graph.input if value.name == "logit_index").name = "last_index"
    onnx.save(model, tmp_path / "older.onnx")
    older = make_session(tmp_path / "older.onnx", SessionSettings(), settings=ServingSettings(1))
    with pytest.raises(InvalidBundleError, match=r"no input 'logit_index'.*export the bundle again"):
        Decoder(older, KeyValueCache(TINY.layout, TINY.context))


@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_a_text_is_predicted_from_any_token_on_in_pieces(
    session: onnxruntime.InferenceSession, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    settings = GenerationSettings(
        layers=TINY.layers,
        kv_heads=TINY.layout.kv_heads,
        head_dims=TINY.layout.head_dims,
        context=30,
        vocabulary=TINY.vocabulary,
        eos_ids=(),
        bos_id=None,
        defaults={},
        chat_template=None,
        special_tokens={},
    )
    monkeypatch.setattr(replay, "LOGITS_BYTES", 4 * TINY.vocabulary * positions)
    text = np.random.default_rng(1).integers(4, 100, 30).tolist()
    windows = [Window(tuple(text), 1), Window(tuple(text[:2]), 1), Window(tuple(text[3:]), 11)]
    found = log_probabilities_of(Replay(session, settings))(windows)
    for window, values in zip(windows, found, strict=True):
        expected = []
        for place in range(window.first, len(window.tokens)):
            logits = TINY.logits(list(window.tokens[:place])).astype(np.float64)
            expected.append(logits[window.tokens[place]] - np.log(np.exp(logits).sum()))
        np.testing.assert_allclose(values, expected, atol=1e-4)


# The scheduler


class Recorder:
    """Stands for a decoder: remembers the runs, and answers with tokens that say nothing."""

    def __init__(self, most_rows: int = 4, limit_bytes: int | None = None) -> None:
        self.cache = KeyValueCache(CacheLayout((1,), (1,)), 10_000, limit_bytes, most_rows)
        self.runs: list[tuple[str, list[int]]] = []
        self.fail_on = ""

    def start(self, first_row: int, new: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        assert not any(self.cache.tokens[first_row : first_row + len(new)])
        return self.run("start", first_row, new)

    def extend(self, row: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return self.run("extend", row, [tokens])

    def step(self, first_row: int, tokens: Sequence[int | None]) -> npt.NDArray[np.float32]:
        assert all(len(held) < self.cache.capacity for held in self.cache.tokens[first_row:][: len(tokens)])
        return self.run("step", first_row, [[] if token is None else [token] for token in tokens])

    def run(self, kind: str, first_row: int, new: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        if kind == self.fail_on:
            raise RuntimeError("onnxruntime has no memory")
        for row, tokens in enumerate(new, first_row):
            self.cache.tokens[row] += tokens
            assert len(self.cache.tokens[row]) <= self.cache.capacity
        self.runs.append((kind, [len(tokens) for tokens in new]))
        return np.eye(len(new), 100, k=50, dtype=np.float32)

    def release(self) -> None:
        self.cache.release()


def new_scheduler(recorder: Recorder, fill_tokens: int = 64, reuse: bool = True) -> Scheduler:
    return Scheduler(recorder, fill_tokens, reuse)  # type: ignore[arg-type]


def test_a_long_prompt_is_filled_in_pieces_between_the_steps_of_who_decodes() -> None:
    recorder = Recorder()
    scheduler = new_scheduler(recorder)
    running, long = request([5] * 10, 50), request(range(100, 400), 2)
    scheduler.add(running)
    scheduler.advance()
    scheduler.add(long)
    while not long.done:
        before = len(running.token_ids)
        scheduler.advance()
        assert len(running.token_ids) == before + 1
    kinds = [kind for kind, _ in recorder.runs]
    assert kinds[:12] == ["extend", "step"] * 6
    pieces = [sizes[0] for kind, sizes in recorder.runs if kind == "extend"]
    assert pieces == [10, 64, 64, 64, 64, 44]


def test_short_new_prompts_are_filled_together_and_long_ones_alone() -> None:
    recorder = Recorder(most_rows=8)
    scheduler = new_scheduler(recorder)
    for size in (10, 12, 200, 9, 11):
        scheduler.add(request(np.random.default_rng(size).integers(4, 99, size).tolist(), 3))
    scheduler.advance()
    assert recorder.runs[0] == ("start", [10, 12, 9, 11])
    assert recorder.runs[1][0] == "extend"
    assert recorder.runs[-1] == ("step", [1] * 5)


def test_equal_prompts_are_computed_once() -> None:
    recorder = Recorder(most_rows=4)
    scheduler = new_scheduler(recorder)
    prompt = list(range(100, 150))
    requests = [request(prompt, 3) for _ in range(4)]
    for each in requests:
        scheduler.add(each)
    while scheduler.busy:
        scheduler.advance()
    assert sorted(sizes[0] for kind, sizes in recorder.runs if kind != "step") == [1, 1, 1, 50]
    assert [each.result(0).reused_tokens for each in requests] == [0, 49, 49, 49]


def test_requests_are_admitted_in_order_of_arrival_when_the_cache_has_room() -> None:
    layout = CacheLayout((1,), (1,))
    recorder = Recorder(most_rows=4, limit_bytes=layout.size_bytes(2, 200))
    scheduler = new_scheduler(recorder)
    order: list[str] = []

    def named(name: str, size: int) -> Request:
        return request([9] * size, 5, on_done=lambda _: order.append(name), text=Numbers(end=None))

    for name, size in (("a", 90), ("b", 80), ("large", 300), ("c", 10)):
        scheduler.add(named(name, size))
    scheduler.advance()
    assert (scheduler.admitted, scheduler.waiting) == (2, 2)  # c would fit, and must not overtake
    while scheduler.busy:
        scheduler.advance()
        assert recorder.cache.size_bytes <= recorder.cache.limit_bytes
    assert order == ["a", "b", "large", "c"]


def decoding(recorder: Recorder, lengths: Sequence[int]) -> tuple[Scheduler, list[Request]]:
    """Requests that decode in the rows 0, 1, ..., each for so many tokens."""
    scheduler = new_scheduler(recorder, fill_tokens=256)
    requests = [request([10 + row] * 5, length) for row, length in enumerate(lengths)]
    for each in requests:
        scheduler.add(each)
    scheduler.advance()
    return scheduler, requests


def test_a_row_that_ends_among_many_is_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(most_rows=8)
    monkeypatch.setattr(recorder.cache, "swap", lambda *_: pytest.fail("a row was moved"))
    scheduler, requests = decoding(recorder, [9, 9, 4, 9, 9, 9, 9, 9])
    while scheduler.busy:
        scheduler.advance()
    steps = [sizes for kind, sizes in recorder.runs if kind == "step"]
    assert steps == [[1] * 8] * 3 + [[1, 1, 0, 1, 1, 1, 1, 1]] * 5
    assert [len(each.result(0).token_ids) for each in requests] == [9, 9, 4, 9, 9, 9, 9, 9]


def test_rows_are_moved_together_when_many_among_them_have_ended() -> None:
    recorder = Recorder(most_rows=8)
    scheduler, requests = decoding(recorder, [9, 3, 3, 3, 3, 9, 9, 3])
    while scheduler.busy:
        scheduler.advance()
    assert recorder.runs[-1] == ("step", [1, 1, 1])
    assert [len(each.result(0).token_ids) for each in requests] == [9, 3, 3, 3, 3, 9, 9, 3]
    kept = sorted(tokens[0] for tokens in recorder.cache.tokens)
    assert kept == list(range(10, 18))  # all are still there for later prompts


def test_a_full_row_that_is_stepped_over_gives_up_its_last_token() -> None:
    recorder = Recorder(most_rows=5)
    scheduler = new_scheduler(recorder, fill_tokens=256)
    for first, size, most_new in ((1, 120, 9), (2, 125, 4), (3, 120, 9), (4, 120, 9), (5, 120, 9)):
        scheduler.add(request([first] * size, most_new))
    while scheduler.busy:
        scheduler.advance()
    assert recorder.cache.capacity == 128
    assert [len(tokens) for tokens in recorder.cache.tokens] == [128, 127, 128, 128, 128]


def test_the_row_that_was_left_longest_ago_is_given_away_first() -> None:
    recorder = Recorder(most_rows=3)
    scheduler = new_scheduler(recorder)
    conversations = {name: [number] * 30 for number, name in enumerate("abc", 1)}

    def turn(name: str) -> int:
        each = request(conversations[name] + [50] * len(conversations[name]), 1)
        scheduler.add(each)
        scheduler.advance()
        return each.result(0).reused_tokens

    assert [turn(name) for name in "abc"] == [0, 0, 0]
    assert turn("a") == 59
    conversations["d"] = [4] * 30
    assert turn("d") == 0  # takes the row of b
    assert [turn(name) for name in "ca"] == [59, 59]
    assert turn("b") == 0
    assert recorder.cache.rows == 3


def test_idle_conversations_make_the_cache_grow_by_a_few_rows_only() -> None:
    recorder = Recorder(most_rows=16)
    scheduler = new_scheduler(recorder)
    rows = []
    for name in range(12):
        for size in (30, 60):  # two turns of a conversation
            scheduler.add(request([name] * size, 1))
            scheduler.advance()
        rows.append(recorder.cache.rows)
    assert rows == [1, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("when", ["waiting", "filling", "decoding"])
def test_a_request_that_is_dropped_leaves_before_the_next_run(when: str) -> None:
    recorder = Recorder(most_rows=1)
    scheduler = new_scheduler(recorder)
    other = request([9] * 5, 3)
    dropped = request([5] * (300 if when == "filling" else 5), 9)
    if when == "waiting":
        scheduler.add(other)
    scheduler.add(dropped)
    scheduler.advance()
    dropped.finish("cancelled")
    scheduler.drop(dropped)
    assert (scheduler.admitted, scheduler.waiting) == ((1, 0) if when == "waiting" else (0, 0))
    runs = len(recorder.runs)
    scheduler.advance()
    assert len(recorder.runs) == runs + (when == "waiting")


def test_a_failing_run_ends_the_requests_in_it_and_no_others() -> None:
    recorder = Recorder()
    scheduler = new_scheduler(recorder)
    first, second = request([5, 6], 4), request([7, 8, 9], 4)
    scheduler.add(first)
    scheduler.advance()
    recorder.fail_on = "extend"
    scheduler.add(second)
    scheduler.advance()
    with pytest.raises(RuntimeError, match="no memory"):
        second.result(0)
    while scheduler.busy:
        scheduler.advance()
    assert len(first.result(0).token_ids) == 4


# The engine


def test_requests_in_a_batch_get_the_tokens_they_get_alone(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(fill_tokens=48)
    given = prompts(24, longest=90)
    choosers = [Greedy() for _ in given]
    running = [
        engine.submit(request(prompt, 5 + index % 20, chooser=choosers[index])) for index, prompt in enumerate(given)
    ]
    for index, each in enumerate(running):
        assert_same(each.result(20).token_ids, alone(given[index], 5 + index % 20), choosers[index])
    assert engine.state.counts.steps < sum(len(each.token_ids) for each in running) / 3


def test_an_answer_goes_up_to_the_end_of_the_context(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    prompt = prompts(1, seed=3)[0]
    most = engine.room_for(prompt, None)
    chooser = Greedy()
    done = engine.submit(request(prompt, most, chooser=chooser, text=Numbers(end=None))).result(20)
    assert len(prompt) + len(done.token_ids) == TINY.context
    assert done.finish_reason == "length"
    assert_same(done.token_ids, alone(prompt, most, end=None), chooser)


@pytest.mark.parametrize("limit_rows", [None, 3])
def test_random_requests_are_all_answered_and_leave_nothing_behind(
    new_engine: Callable[..., Engine], limit_rows: int | None
) -> None:
    limit = None if limit_rows is None else TINY.layout.size_bytes(limit_rows, 160)
    engine = new_engine(fill_tokens=32, limit_bytes=limit)
    numbers = random.Random(1)
    beginnings = prompts(4, longest=60, seed=9)
    ends = threading.Semaphore(0)
    given: list[tuple[Request, Greedy]] = []
    sizes = []
    for number in range(400):
        prompt = (numbers.choice(beginnings) if number % 3 == 0 else []) + prompts(1, seed=number)[0]
        chooser = Greedy(fail_after=numbers.randrange(5) if number % 17 == 0 else None)
        each = request(
            prompt,
            numbers.randint(1, 40),
            chooser=chooser,
            text=Numbers(numbers.choice([END, 50, None])),
            deadline=time.monotonic() + numbers.uniform(0, 0.2) if number % 19 == 0 else None,
            on_done=lambda _: ends.release(),
        )
        given.append((engine.submit(each), chooser))
        if number % 5 == 0:
            engine.cancel(given[numbers.randrange(len(given))][0])
        if number % 40 == 0:
            given[numbers.randrange(len(given))][0]._done.wait(5)
            sizes.append(engine.state.cache_bytes)
    outcomes: dict[str, int] = {}
    for each, chooser in given:
        try:
            answer = each.result(30)
        except ValueError:
            outcomes["failed"] = outcomes.get("failed", 0) + 1
            continue
        outcomes[answer.finish_reason] = outcomes.get(answer.finish_reason, 0) + 1
        got = list(answer.token_ids)
        assert_same(got, alone(each.prompt, len(got), end=None), chooser)
    assert sum(outcomes.values()) == 400
    assert {"failed", "stop", "length", "cancelled"} <= outcomes.keys()
    for _ in given:  # each was told once
        assert ends.acquire(timeout=5)
    assert not ends.acquire(blocking=False)
    until(lambda: (engine.state.waiting, engine.state.running) == (0, 0))
    state = engine.state
    assert state.cache_bytes <= engine._cache.limit_bytes
    assert state.cache_bytes <= max(sizes) * 2
    assert state.counts.reused_tokens > 0


def test_the_cache_is_not_allocated_anew_while_requests_come_and_go(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(most_rows=4)
    for each in [engine.submit(request(prompt, 20)) for prompt in prompts(12)]:
        each.result(20)
    version = engine._cache.version
    for each in [engine.submit(request(prompt, 20)) for prompt in prompts(40, seed=1)]:
        each.result(20)
    assert engine._cache.version == version


def test_cancelling_frees_the_row_at_once(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(most_rows=1)
    long = engine.submit(request([5, 6, 7], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None)))
    waiting = engine.submit(request([8, 9], 3))
    unlucky = engine.submit(request([8, 9], 3))
    engine.cancel(unlucky)
    assert unlucky.result(5).finish_reason == "cancelled"
    assert not waiting.done
    engine.cancel(long)
    stopped = long.result(5)
    assert stopped.finish_reason == "cancelled"
    assert len(stopped.token_ids) < 200
    assert stopped.text.endswith(".")  # what was held back
    assert list(waiting.result(5).token_ids) == alone([8, 9], 3)
    engine.cancel(waiting)  # done already: nothing happens


def test_a_deadline_ends_a_request_with_what_it_has(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(most_rows=1)
    now = 0.0

    class Slow(Greedy):
        def next(self, logits: npt.NDArray[np.float32]) -> Chosen:
            nonlocal now
            now += 1
            return super().next(logits)

    monkeypatch.setattr("onnxpress.runtime.generation.scheduler.time", SimpleNamespace(monotonic=lambda: now))
    late = engine.submit(request([5, 6], 250, chooser=Slow(), text=Numbers(end=None), deadline=4.5)).result(10)
    assert late.finish_reason == "timeout"
    assert len(late.token_ids) == 5


@pytest.mark.parametrize("at_once", [True, False])
def test_a_later_turn_of_a_conversation_computes_only_what_is_new(
    new_engine: Callable[..., Engine], at_once: bool
) -> None:
    engine = new_engine(most_rows=3)
    first, other = prompts(2, seed=21)
    first = first + prompts(1, seed=22)[0]
    answer = engine.submit(request(first, 12, text=Numbers(end=None))).result(10)
    turn = [*first, *answer.token_ids, *prompts(1, seed=23)[0]]
    choosers = [Greedy(), Greedy()]
    follow = [engine.submit(request(turn, 12, chooser=chooser)) for chooser in choosers[: 1 + at_once]]
    engine.submit(request(other, 5)).result(10)
    for each, chooser in zip(follow, choosers, strict=False):
        again = each.result(10)
        assert again.reused_tokens >= len(first) + len(answer.token_ids) - 1
        assert_same(again.token_ids, alone(turn, 12), chooser)


def test_without_reuse_every_prompt_is_computed(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(reuse_prefixes=False)
    prompt = prompts(1, seed=8)[0] * 3
    answers = [engine.submit(request(prompt, 6)).result(10) for _ in range(3)]
    assert [answer.reused_tokens for answer in answers] == [0, 0, 0]
    assert engine.state.kept_rows == 0
    assert len({answer.token_ids for answer in answers}) == 1


@pytest.mark.parametrize("where", ["constraint", "callback", "text"])
def test_a_request_that_fails_hurts_no_other(new_engine: Callable[..., Engine], where: str) -> None:
    engine = new_engine()

    class Broken(Numbers):
        def feed(self, token_id: int) -> tuple[str, bool]:
            raise ValueError("broken")

    def refuse(delta: Delta) -> None:
        raise ValueError("broken")

    options: dict[str, Any] = {
        "constraint": {"chooser": Greedy(fail_after=2)},
        "callback": {"on_delta": refuse},
        "text": {"text": Broken()},
    }[where]
    good = [engine.submit(request(prompt, 10)) for prompt in prompts(3)]
    bad = engine.submit(request([5, 6, 7], 10, **options))
    with pytest.raises(ValueError, match=r"broken|allows no token"):
        bad.result(10)
    assert [list(each.result(10).token_ids) for each in good] == [alone(prompt, 10) for prompt in prompts(3)]
    until(lambda: engine.state.running == 0)


@pytest.mark.parametrize(
    ("owner", "method"), [(Rows, "reserve"), (Scheduler, "_fill")], ids=["while they are admitted", "after that"]
)
def test_an_error_of_the_scheduler_reaches_all_callers_and_the_engine_goes_on(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    engine = new_engine()
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, lambda *_: 1 / 0)
        for each in [engine.submit(request([5, 6], 3)) for _ in range(3)]:
            with pytest.raises(ZeroDivisionError):
                each.result(10)
    assert list(engine.submit(request([5, 6], 3)).result(10).token_ids) == alone([5, 6], 3)


def test_a_thread_that_the_system_does_not_give_is_asked_for_again(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    refused = request([5, 6], 3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            engine.submit(refused)
    assert list(engine.submit(request([5, 6], 3)).result(10).token_ids) == alone([5, 6], 3)
    assert not refused.done


@pytest.mark.parametrize(
    ("prompt", "wanted", "message"),
    [
        ([], 1, "the prompt has no tokens"),
        ([5, 100], 1, "has the token 100; the model knows 0 to 99"),
        ([-1], 1, "has the token -1"),
        ([5], 0, "max_new_tokens is 0; it must be at least 1"),
        ([5], -3, "max_new_tokens is -3"),
        ([5] * 256, 1, "has 256 tokens; the model's context is 256"),
        ([5] * 60, 60, "120 tokens need .* of cache"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    new_engine: Callable[..., Engine], prompt: list[int], wanted: int, message: str
) -> None:
    engine = new_engine(limit_bytes=TINY.layout.size_bytes(1, 100))
    with pytest.raises(InvalidInputError, match=message) as caught:
        engine.room_for(prompt, wanted)
    assert "\n" not in str(caught.value)
    assert list(engine.submit(request([5, 6], 3)).result(10).token_ids) == alone([5, 6], 3)


def test_a_request_that_can_never_fit_fails_and_those_behind_it_are_served(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(limit_bytes=TINY.layout.size_bytes(1, 100))
    large, small = request([5] * 90, 90), request([5, 6], 3)
    engine.submit(large)
    engine.submit(small)
    with pytest.raises(CacheMemoryError):
        large.result(10)
    assert small.result(10).finish_reason in ("stop", "length")


def test_a_full_queue_is_refused(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(most_rows=1)
    running = engine.submit(request([5], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None)))
    until(lambda: engine.state.running)
    for _ in range(2):
        engine.submit(request([6], 1))
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        engine.submit(request([6], 1), most_waiting=2)
    engine.submit(request([6], 1))  # of someone without that limit
    engine.cancel(running)


def test_the_thread_ends_when_nothing_is_to_be_done_and_starts_again(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxpress.runtime.generation.engine._IDLE_SECONDS", 0.01)
    engine = new_engine()
    for _ in range(3):
        assert list(engine.submit(request([5, 6], 3)).result(10).token_ids) == alone([5, 6], 3)
        thread = engine._thread
        if thread is not None:
            thread.join(10)
        assert engine._thread is None
    assert engine.state.kept_rows > 0  # what is kept outlives the thread


def test_closing_cancels_what_runs_and_waits_and_a_later_request_starts_anew(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(most_rows=1)
    engine.close()  # nothing was started
    both = [engine.submit(request([5, 6], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None))) for _ in range(2)]
    engine.close()
    assert [each.result(0).finish_reason for each in both] == ["cancelled", "cancelled"]
    assert engine.state.cache_bytes == 0
    assert list(engine.submit(request([5, 6], 3)).result(10).token_ids) == alone([5, 6], 3)


def test_closing_does_not_wait_for_a_request_that_comes_meanwhile(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(most_rows=1)
    running = engine.submit(request([5, 6], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None)))
    late: list[Request] = []
    held = Held()
    clear = engine._scheduler.clear

    def while_it_closes() -> None:
        if not late:
            late.append(engine.submit(request([5, 6], 20, chooser=held, text=Numbers(end=None))))
        clear()

    monkeypatch.setattr(engine._scheduler, "clear", while_it_closes)
    engine.close()
    assert running.result(0).finish_reason == "cancelled"
    assert not late[0].done
    held.may_go.set()
    assert list(late[0].result(10).token_ids) == alone([5, 6], 20, end=None)


def test_another_process_is_refused(new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    loaded_in = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr("onnxpress.runtime.processes.os.getpid", lambda: loaded_in + 1)
        with pytest.raises(ForkError, match=rf"loaded in process {loaded_in} .*fork {loaded_in + 1}"):
            engine.submit(request([5]))


def test_another_process_does_not_wait_for_the_lock_to_cancel(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    another = os.getpid() + 1
    with engine._changed, monkeypatch.context() as patch:
        patch.setattr("onnxpress.runtime.processes.os.getpid", lambda: another)
        thread = threading.Thread(target=engine.cancel, args=(request([5]),), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


# Streams


def made(prompt: list[int], most_new: int, **options: Any) -> Prepared:
    def make(on_delta: Any, on_done: Any) -> Request:
        return request(prompt, most_new, on_delta=on_delta, on_done=on_done, **options)

    return Prepared(prompt, most_new, make)


def test_a_stream_gives_tokens_in_order_and_then_the_answer(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    streams = [Stream(engine, made(prompt, 10, text=Numbers(end=None))) for prompt in prompts(3)]
    for stream, prompt in zip(streams, prompts(3), strict=True):
        deltas = list(stream)
        answer = stream.result()
        assert [delta.token_id for delta in deltas] == [*alone(prompt, 10, end=None), None]
        assert "".join(delta.text for delta in deltas) == answer.text
        assert list(stream) == []  # asking again does not wait for ever


def test_leaving_a_stream_cancels_its_request(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    slow = made([5, 6], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None))
    with Stream(engine, slow) as stream:
        next(stream)
    assert stream.result().finish_reason == "cancelled"


def test_dropping_a_stream_cancels_its_request(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()

    def slow() -> Prepared:
        return made([5, 6], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None))

    stream = Stream(engine, slow())
    next(stream)
    dropped = [stream.request]
    del stream

    async def leave() -> Request:
        stream = AsyncStream(engine, slow())
        await anext(stream)
        return stream.request

    dropped.append(asyncio.run(leave()))
    assert [each.result(10).finish_reason for each in dropped] == ["cancelled", "cancelled"]


def test_dropping_a_stream_that_has_ended_changes_nothing(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    stream = Stream(engine, made([5, 6], 10, text=Numbers(end=None)))
    request, answer = stream.request, stream.result()
    del stream
    assert request.result(0) is answer
    assert not engine._cancelled


def test_a_stream_raises_what_made_its_request_fail(new_engine: Callable[..., Engine]) -> None:
    stream = Stream(new_engine(), made([5, 6], 9, chooser=Greedy(fail_after=2), text=Numbers(end=None)))
    assert next(stream).token_id is not None
    assert next(stream).token_id is not None
    with pytest.raises(ValueError, match="allows no token"):
        next(stream)


def test_event_loops_stream_many_answers_at_once_and_cancel_them(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    given = prompts(6)

    async def one(prompt: list[int]) -> Generation:
        stream = AsyncStream(engine, made(prompt, 10))
        seen = [delta.text async for delta in stream]
        answer = await stream.result()
        assert "".join(seen) == answer.text
        return answer

    async def cut_off() -> Request:
        stream = AsyncStream(engine, made([5, 6], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None)))
        task = asyncio.ensure_future(stream.result())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream.request

    async def all_of_them() -> tuple[list[Generation], Request]:
        answers = asyncio.gather(*map(one, given))
        return await answers, await cut_off()

    answers, cut = asyncio.run(all_of_them())
    assert [list(answer.token_ids) for answer in answers] == [alone(prompt, 10) for prompt in given]
    assert cut.result(5).finish_reason == "cancelled"


def test_a_loop_that_ends_early_cancels_its_requests(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()

    async def leave() -> Request:
        slow = made([5, 6], 200, chooser=Greedy(delay=0.05), text=Numbers(end=None))
        return AsyncStream(engine, slow).request

    assert asyncio.run(leave()).result(10).finish_reason == "cancelled"
