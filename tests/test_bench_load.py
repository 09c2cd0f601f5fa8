"""bench/serving/load.py: what it says of answers is what a server gave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.serving.load import Load

BODY = b"x" * 3000


def answer(status: str, headers: str = "", body: bytes = BODY) -> list[bytes]:
    """An answer in pieces, as a network may deliver it."""
    whole = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body
    return [whole[:20], whole[20:60], whole[60:]]


ANSWERS: dict[str, list[bytes] | None] = {
    "fine": answer("200 OK"),
    "full": answer("429 Too Many Requests", "Retry-After: 1\r\n"),
    "mute": answer("503 Service Unavailable"),
    "gone": [],  # the connection is closed
    "never": None,
}


class Peer(asyncio.Protocol):
    """A server that does what the body of a request says."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        pieces = ANSWERS[json.loads(data.partition(b"\r\n\r\n")[2])["input"]]
        asyncio.get_running_loop().create_task(self.write(pieces))

    async def write(self, pieces: list[bytes] | None) -> None:
        for piece in pieces or ():
            self.transport.write(piece)
            await asyncio.sleep(0.001)
        if pieces == []:
            self.transport.close()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(inputs: list[str], **options: Any) -> dict[str, Any]:
        file = tmp_path / "bodies.json"
        file.write_text(json.dumps([{"input": name} for name in inputs]), encoding="utf-8")

        async def main() -> dict[str, Any]:
            peers: list[Peer] = []

            def make_peer() -> Peer:
                peers.append(Peer())
                return peers[-1]

            server = await asyncio.get_running_loop().create_server(make_peer, "127.0.0.1", 0)
            asked = {"port": server.sockets[0].getsockname()[1], "path": "/", "bodies_file": str(file), **options}
            async with server:
                found = await Load(asked).run()
                for peer in peers:
                    peer.transport.abort()
                await asyncio.sleep(0.01)
                return found

        return asyncio.run(main())

    return run


def test_a_closed_loop_counts_answers(load: Callable[..., dict[str, Any]]) -> None:
    found = load(["fine", "full"], clients=4, seconds=0.3, warm_seconds=0.1)
    outcomes = found["outcomes"]
    assert set(outcomes) == {"200", "429"}
    assert abs(outcomes["200"] - outcomes["429"]) <= 8
    assert sum(outcomes.values()) == found["sent"]
    assert found["answer_bytes"] == len(BODY) * found["sent"]
    assert found["refused_without_retry_after"] == 0
    assert found["most_connections"] == 4
    assert 0 < found["latency_ms"]["200"]["p50"] <= found["latency_ms"]["200"]["most"]


def test_an_open_loop_finds_what_became_of_every_request(load: Callable[..., dict[str, Any]]) -> None:
    found = load([*ANSWERS], rate=200, seconds=0.5, wait_seconds=0.3)
    outcomes = found["outcomes"]
    assert set(outcomes) == {"200", "429", "503", "lost", "hung"}
    assert sum(outcomes.values()) == found["sent"]
    assert found["refused_without_retry_after"] == outcomes["503"]
    assert max(outcomes.values()) - min(outcomes.values()) <= 1  # they come in turn


def test_a_server_that_is_not_there_loses_requests(tmp_path: Path) -> None:
    file = tmp_path / "bodies.json"
    file.write_text('[{"input": "fine"}]', encoding="utf-8")
    options = {"port": 1, "path": "/", "bodies_file": str(file), "rate": 100, "seconds": 0.2}
    found = asyncio.run(Load(options).run())
    assert found["outcomes"] == {"lost": found["sent"]}
