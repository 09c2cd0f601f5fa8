"""The official client over an application in this process, and what holds an engine while something happens."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest

from onnxpress.runtime.generation.generator import Generator

ASKED: Any = [{"role": "user", "content": "hi there"}]
LONG: Any = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def ask(app: Any, asking: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    """What a function gets with a client of the application."""

    async def inside() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with openai.AsyncOpenAI(
            api_key="none",
            base_url="http://localhost/v1",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        ) as client:
            return await asking(client)

    return asyncio.run(inside())


def chat(app: Any, **fields: Any) -> Any:
    """The answer to a chat, or the chunks of a stream."""

    async def asking(client: openai.AsyncOpenAI) -> Any:
        answer = await client.chat.completions.create(**{"model": "tiny", "messages": ASKED, **fields})
        return [chunk async for chunk in answer] if fields.get("stream") else answer

    return ask(app, asking)


def complete(app: Any, **fields: Any) -> Any:
    """The same for a completion."""

    async def asking(client: openai.AsyncOpenAI) -> Any:
        answer = await client.completions.create(**{"model": "tiny", "prompt": "Once upon", **fields})
        return [chunk async for chunk in answer] if fields.get("stream") else answer

    return ask(app, asking)


def post(app: Any, path: str, body: dict[str, Any]) -> httpx2.Response:
    """The response to a body that the client would not send."""

    async def inside() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
            content, kind = json.dumps(body), {"content-type": "application/json"}
            return await client.post(path, content=content, headers=kind)

    return asyncio.run(inside())


def text_of(generator: Generator, token_ids: tuple[int, ...]) -> bytes:
    """The bytes of tokens, one after the other."""
    return b"".join(generator.preparing.detokenizer.token_text(token).raw or b"" for token in token_ids)


def held(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold the engine's thread before each step until the event is set."""
    may_go = threading.Event()
    advance = generator.engine._scheduler.advance

    def hold() -> None:
        may_go.wait(10)
        advance()

    monkeypatch.setattr(generator.engine._scheduler, "advance", hold)
    return may_go


async def until(condition: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
