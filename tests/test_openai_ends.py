"""runtime/server/answering.py: answers that are cut off, given up, stopped by what watches them, and reported."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import openai
import pytest

from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError
from tests.text_client import ASKED, CHAT, LONG, ask, chat, held, post, text_of, until
from tests.text_server import app, generator, served

__all__ = ["app", "generator", "served"]  # fixtures


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_server_cuts_off_is_an_error(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    may_go = held(generator, monkeypatch)

    async def asking(client: openai.AsyncOpenAI) -> None:
        async def answer() -> None:
            created: Any = await client.chat.completions.create(model="tiny", messages=ASKED, stream=stream, **LONG)
            if stream:
                async for _ in created:
                    pass

        task = asyncio.create_task(answer())
        await until(lambda: bool(generator.engine.state.running + generator.engine.state.waiting))
        threading.Timer(0.1, may_go.set).start()
        await asyncio.to_thread(generator.engine.close)
        await task

    with pytest.raises(openai.APIError, match="has cut this answer off") as caught:
        ask(app, asking)
    assert caught.value.code == "shutting_down"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_cancelled_gives_its_row_back(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    may_go = held(generator, monkeypatch)
    done = generator.engine.state.counts.new_tokens

    async def asking(client: openai.AsyncOpenAI) -> None:
        asked: Any = client.chat.completions.create(model="tiny", messages=ASKED, stream=stream, n=3, **LONG)
        task = asyncio.create_task(asked)
        await until(lambda: generator.engine.state.running + generator.engine.state.waiting == 3)
        task.cancel()
        await asyncio.wait([task])
        may_go.set()
        await until(lambda: not generator.engine.state.running + generator.engine.state.waiting)

    ask(app, asking)
    assert generator.engine.state.counts.new_tokens - done < 50
    assert generator.engine.state.taken_rows == 0
    assert app.state.service.streams == 0


class _Holding:
    """Lets text leave once 5 more characters are there, and stops one with a certain letter."""

    def __init__(self, stopped: str = "") -> None:
        self._held, self._stopped = "", stopped

    async def feed(self, text: str) -> str:
        self._held += text
        if self._stopped and self._stopped in self._held:
            raise RequestError(400, "it was stopped", kind="content_filter_error", code="output_blocked")
        ready, self._held = self._held[:-5], self._held[-5:]
        return ready

    async def finish(self) -> str:
        return self._held

    def close(self) -> None:
        pass


def test_text_and_tokens_wait_for_what_watches_them(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Call, "watch_output", lambda self: _Holding())
    own = generator.chat(ASKED, max_new_tokens=40, temperature=1, seed=3)
    shown, tokens = "", b""
    chunks = chat(app, max_tokens=40, temperature=1, seed=3, logprobs=True, stream=True)
    for chunk in chunks:
        choice = chunk.choices[0]
        shown += choice.delta.content or ""
        tokens += b"".join(bytes(each.bytes or ()) for each in (choice.logprobs.content if choice.logprobs else ()))
        if choice is not chunks[-1].choices[0]:
            assert len(tokens.decode(errors="ignore")) <= len(shown)
    assert shown == own.text
    assert tokens == text_of(
        generator, own.token_ids[: own.token_ids.index(1)] if 1 in own.token_ids else own.token_ids
    )


def test_what_is_stopped_ends_a_stream_with_an_error(
    app: Any, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = generator.chat(ASKED, max_new_tokens=40, temperature=1, seed=3).text
    monkeypatch.setattr(Call, "watch_output", lambda self: _Holding(text[20]))
    body = {"messages": ASKED, "max_tokens": 40, "temperature": 1, "seed": 3, "stream": True}
    response = post(app, CHAT, body)
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n") if event]
    assert events[-1]["error"]["code"] == "output_blocked"
    with pytest.raises(openai.APIError, match="it was stopped"):
        chat(app, max_tokens=40, temperature=1, seed=3, stream=True)
    assert text[20] not in "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert app.state.service.streams == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_says_what_it_took(app: Any, stream: bool) -> None:
    calls: list[Call] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        calls.append(scope["state"]["call"])

    post(watched, CHAT, {"messages": ASKED, "stream": stream, "max_tokens": 9, "ignore_eos": True, "n": 2})
    (call,) = calls
    answer, report = call.answer, call.report
    assert answer is not None
    assert (answer.new_tokens, answer.finish_reason, len(answer.between_token_seconds)) == (18, "length", 16)
    assert answer.prompt_tokens * 2 == report.tokens
    assert report.sequences == 2
    assert answer.first_token_seconds is not None
    assert 0 < report.tokenize_seconds < answer.first_token_seconds < report.wait_seconds + report.run_seconds + 60
    assert report.run_seconds > sum(answer.between_token_seconds) / 4
