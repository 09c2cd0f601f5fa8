"""Clients that leave the real server while models work for them: their texts leave the queue, their answers end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import onnxpress
from onnxpress.runtime.call_queue import CallQueue
from onnxpress.runtime.generation.engine import EngineState
from onnxpress.runtime.queue_counts import QueueCounts
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server import Limits, ServerSettings, create_app
from onnxpress.runtime.server.limits import RequestLimits
from onnxpress.runtime.server.registry import Models, ServedModel
from onnxpress.runtime.token_sequences import PackedTokens
from tests.live_server import LiveServer, read_answer, request, serve
from tests.tiny_generator import make_bundle, opening
from tests.waiting import until

LIMITS = Limits(waiting=8)


class Embedding:
    """A server of a tiny embedder whose worker can be held."""

    def __init__(self, live: LiveServer, runner: BatchingRunner, go_on: threading.Event) -> None:
        self.live, self.runner, self.go_on = live, runner, go_on

    @property
    def counts(self) -> QueueCounts:
        counts = self.runner.state
        assert isinstance(counts, QueueCounts)
        return counts


@pytest.fixture
def embedding(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedding]:
    model = onnxpress.load(tiny_bundle, threads=1)
    runner = BatchingRunner(model, most_waiting=LIMITS.waiting, seconds=LIMITS.seconds)
    go_on = threading.Event()
    run = model.encoder.run_batch

    def held(*arguments: object, **options: object) -> object:
        assert go_on.wait(20)
        return run(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model.encoder, "run_batch", held)
    served = ServedModel("tiny", "feature-extraction", model, runner, 0)
    app = create_app(ServerSettings.of([tiny_bundle], limits=LIMITS), Models([served]))
    with serve(app, LIMITS) as live:
        yield Embedding(live, runner, go_on)
        go_on.set()


def embed(*texts: str) -> bytes:
    return request("/v1/embeddings", json.dumps({"input": texts}).encode())


def test_the_texts_of_a_client_that_left_leave_the_queue(embedding: Embedding) -> None:
    with contextlib.ExitStack() as stack:
        stays = stack.enter_context(embedding.live.connect())
        stays.sendall(embed("runs"))
        until(lambda: embedding.counts.running and not embedding.counts.waiting)
        with embedding.live.connect() as leaves:
            leaves.sendall(embed("one", "two", "three"))
            until(lambda: embedding.counts.waiting == 3)
        until(lambda: embedding.counts.waiting == 0)
        assert embedding.counts.cancelled == 1
        embedding.go_on.set()
        assert read_answer(stays)[0] == 200
    assert embedding.counts.sequences == 1


def test_many_clients_that_leave_make_room_for_one_that_stays(embedding: Embedding) -> None:
    with embedding.live.connect() as stays, contextlib.ExitStack() as stack:
        first = stack.enter_context(embedding.live.connect())
        first.sendall(embed("runs"))
        until(lambda: embedding.counts.running and not embedding.counts.waiting)
        for number in range(LIMITS.waiting):
            stack.enter_context(embedding.live.connect()).sendall(embed(f"text {number}"))
        until(lambda: embedding.counts.waiting == LIMITS.waiting)
        stays.sendall(embed("refused"))
        status, headers, _ = read_answer(stays)
        assert (status, headers["retry-after"]) == (429, "1")
        stack.close()
        until(lambda: embedding.counts.waiting == 0)
        stays.sendall(embed("taken"))
        until(lambda: embedding.counts.waiting == 1)
        embedding.go_on.set()
        assert read_answer(stays)[0] == 200


@pytest.mark.parametrize("path", ["/whole", "/stream"])
def test_an_answer_ends_where_its_client_leaves(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opening(make_bundle(tmp_path)) as open_with, BatchingRunner(generator := open_with()) as runner:
        app = FastAPI()
        advance = generator.engine._scheduler.advance

        def slowly() -> None:
            time.sleep(0.05)
            advance()

        monkeypatch.setattr(generator.engine._scheduler, "advance", slowly)
        endless = {"max_new_tokens": 10_000, "ignore_eos": True}

        @app.post("/whole")
        async def whole() -> str:
            return (await runner.asynchronous.generate("one", **endless)).text  # type: ignore[arg-type]

        @app.post("/stream")
        async def stream() -> StreamingResponse:
            async def texts() -> AsyncIterator[str]:
                async for text in runner.asynchronous.stream("one", **endless):  # type: ignore[arg-type]
                    yield text

            return StreamingResponse(texts())

        def state() -> EngineState:
            assert isinstance(runner.state, EngineState)
            return runner.state

        with serve(RequestLimits(app, LIMITS), LIMITS) as live:
            with live.connect() as client:
                client.sendall(request(path, b"{}"))
                until(lambda: state().running == 1)
            until(lambda: state().running == 0)
            assert state().counts.new_tokens < 50  # of the 250 that would fit, at 20 a second


def test_texts_that_wait_take_little_memory(embedding: Embedding) -> None:
    """The tokenizer's own objects keep the text of each token, and what was cut off."""
    with embedding.live.connect() as first, embedding.live.connect() as second:
        first.sendall(embed("runs"))
        until(lambda: embedding.counts.running and not embedding.counts.waiting)
        second.sendall(embed("waits " * 100))
        until(lambda: embedding.counts.waiting)
        queue = embedding.runner._serving
        assert isinstance(queue, CallQueue)
        (item,) = queue._items
        assert isinstance(item.call.work.encodings[0], PackedTokens)
        embedding.go_on.set()
        assert read_answer(second)[0] == 200
