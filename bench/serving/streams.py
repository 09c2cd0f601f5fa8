"""Streamed answers of a generator, in a process of its own: `python -m bench.serving.streams '{...}'` prints JSON.

So many streams are open at once, each of which asks again when its answer is complete. Options: `streams`, `answers`
(of each stream), `new_tokens`, `prompts_file` (a JSON list), and

- `port`: of a server, which is asked over HTTP; a pass over a part of the prompts warms it up; or
- `folder`, `variant`, `threads`, `settings`: the same with the generator in this process, without HTTP
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import uvloop

from bench.serving.load import percentiles

_USAGE = re.compile(rb'"completion_tokens":(\d+)')
_FIRST = b"data: "
_END = b"data: [DONE]\n\n"
_LAST_BYTES = 2048  # that hold the usage, which comes before the end


class FailedError(Exception):
    """An answer that is none."""


class Reader(asyncio.Protocol):
    """A connection; of its events only the first, the number of tokens and the end are looked for."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._tail = b""
        self._first = 0.0
        self._answer: asyncio.Future[tuple[int, float]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As of asyncio."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> Awaitable[tuple[int, float]]:
        """Send a request; gives the tokens of the answer, and when the first text came."""
        assert self.transport is not None
        self._tail, self._first = b"", 0.0
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """As of asyncio."""
        assert self._answer is not None
        if not self._first and _FIRST in data:
            self._first = time.monotonic()
        self._tail = (self._tail + data)[-_LAST_BYTES:]
        if _END in self._tail and self._tail.endswith(b"0\r\n\r\n") and not self._answer.done():
            usage = _USAGE.search(self._tail)
            if usage is None:
                self._answer.set_exception(FailedError(f"no usage in the last events: {self._tail[-300:]!r}"))
            else:
                self._answer.set_result((int(usage[1]), self._first))
        elif not self._first and b"HTTP/1.1 200" not in self._tail and not self._answer.done():
            self._answer.set_exception(FailedError(f"not an answer: {self._tail[:300]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        """As of asyncio."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(FailedError("the connection ended before the answer"))


Ask = Callable[[str], Awaitable[tuple[int, float]]]
"""Has a prompt answered; the tokens, and when the first text came."""


async def measure(options: dict[str, Any], asks: list[Ask]) -> dict[str, Any]:
    """The streams, after half of an answer each as a warm-up."""
    prompts = json.loads(Path(options["prompts_file"]).read_text(encoding="utf-8"))
    tokens: list[int] = []
    firsts: list[float] = []

    async def stream(ask: Ask, number: int) -> None:
        for turn in range(options["answers"]):
            begun = time.monotonic()
            count, first = await ask(prompts[(number + turn * len(asks)) % len(prompts)])
            tokens.append(count)
            firsts.append(first - begun)

    async def all_streams() -> None:
        await asyncio.gather(*(stream(ask, number) for number, ask in enumerate(asks)))

    await asyncio.gather(*(ask(prompts[0]) for ask in asks))
    start, used = time.monotonic(), time.process_time()
    await all_streams()
    seconds = time.monotonic() - start
    return {
        "tokens": sum(tokens),
        "seconds": seconds,
        "tokens_per_second": sum(tokens) / seconds,
        "first_token_ms": percentiles(firsts),
        "own_cpu_share": (time.process_time() - used) / seconds,
    }


async def over_http(options: dict[str, Any]) -> dict[str, Any]:
    """The generator of a server."""
    port = options["port"]
    readers = []
    for _ in range(options["streams"]):
        _, reader = await asyncio.get_running_loop().create_connection(Reader, "127.0.0.1", port)
        readers.append(reader)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"

    def asking(reader: Reader) -> Ask:
        def ask(prompt: str) -> Awaitable[tuple[int, float]]:
            body = {
                "model": "model",
                "prompt": prompt,
                "max_tokens": options["new_tokens"],
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            content = json.dumps(body).encode()
            return reader.ask(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)

        return ask

    return await measure(options, [asking(reader) for reader in readers])


async def directly(options: dict[str, Any]) -> dict[str, Any]:
    """A generator of this process."""
    import onnxpress

    model = onnxpress.load(
        options["folder"],
        variant=options["variant"],
        threads=options["threads"],
        settings=options["settings"],
        task="text-generation",
    )

    async def ask(prompt: str) -> tuple[int, float]:
        first = 0.0
        async with model.open_async_stream(prompt, max_new_tokens=options["new_tokens"], temperature=0.0) as stream:
            async for delta in stream:
                if delta.text and not first:
                    first = time.monotonic()
            answer = await stream.result()
        return len(answer.token_ids), first or time.monotonic()

    try:
        return await measure(options, [ask] * options["streams"])
    finally:
        await asyncio.to_thread(model.close)


def main() -> None:
    """Do what the command line asks."""
    options = json.loads(sys.argv[1])
    print(json.dumps(uvloop.run(over_http(options) if "port" in options else directly(options))))


if __name__ == "__main__":
    main()
