"""Streams of text from a server process: clients that leave, clients that do not read, and all others meanwhile."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from tests.text_server import LIMITS, ROOT, running

ASKED: Any = [{"role": "user", "content": "hi there"}]
LONG: Any = {"model": "tiny", "messages": ASKED, "stream": True, "max_tokens": 240, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0, timeout=30) as client:
        yield client
    until(address, lambda state: not state["streams"])


def until(address: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for a state of the server, but not for ever."""
    deadline = time.monotonic() + 20
    while not condition(state := httpx2.get(f"{address}/test/state").json()):
        assert time.monotonic() < deadline, state
        time.sleep(0.02)
    return dict(state)


def unread(address: str, body: dict[str, Any]) -> socket.socket:
    """Ask for a stream and read nothing of it."""
    url = urlsplit(address)
    assert url.hostname is not None
    sending = socket.socket()
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sending.settimeout(30)
    sending.connect((url.hostname, url.port))
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n"
    sending.sendall(
        f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
    )
    return sending


def rest(reading: socket.socket) -> bytes:
    with reading:
        return b"".join(iter(lambda: reading.recv(65536), b""))


def test_text_comes_while_it_is_made(client: openai.OpenAI, address: str) -> None:
    with client.chat.completions.create(**LONG | {"max_tokens": 60}) as stream:
        next(stream)
        assert httpx2.get(f"{address}/test/state").json()["running"] == 1
        assert len(list(stream)) > 30


@pytest.mark.parametrize("first", [True, False], ids=["while it reads", "before the first token"])
def test_a_client_that_leaves_ends_its_answers(client: openai.OpenAI, address: str, first: bool) -> None:
    before = until(address, lambda state: not state["running"])["counts"]["new_tokens"]
    if first:
        with client.chat.completions.create(n=2, **LONG) as stream:
            next(stream)
    else:
        body = {name: value for name, value in LONG.items() if name != "extra_body"}
        unread(address, {**body, "n": 2, "ignore_eos": True}).close()
        until(address, lambda state: not state["streams"])
    after = until(address, lambda state: not state["running"] + state["waiting"] + state["streams"])
    assert after["taken_rows"] == 0
    assert after["counts"]["new_tokens"] - before < 2 * 240


def test_a_client_that_does_not_read_blocks_nobody(client: openai.OpenAI, address: str) -> None:
    body = {"messages": ASKED, "stream": True, "max_tokens": 240, "ignore_eos": True, "temperature": 2, "seed": 1}
    stalled = unread(address, {**body, "logprobs": True, "top_logprobs": 20})
    until(address, lambda state: state["running"] == 1)
    # Others are answered meanwhile, whole and streamed.
    assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=5).choices
    with client.chat.completions.create(**LONG) as stream:
        assert len(list(stream)) > 100
    # Its own answer is made and its row is free, though nothing of it is read.
    state = until(address, lambda state: not state["running"])
    assert (state["streams"], state["taken_rows"]) == (1, 0)
    whole = rest(stalled)
    assert b"data: [DONE]" in whole
    assert whole.count(b'"top_logprobs"') == 240


def test_streams_are_limited(client: openai.OpenAI, address: str) -> None:
    streams = [client.chat.completions.create(**LONG) for _ in range(LIMITS.streams)]
    for stream in streams:
        next(stream)
    with pytest.raises(openai.RateLimitError, match="3 answers are being streamed, which is the limit") as refused:
        client.chat.completions.create(**LONG)
    assert refused.value.code == "too_many_streams"
    assert refused.value.response.headers["retry-after"] == "1"
    assert client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3).choices  # no stream
    streams.pop().close()
    until(address, lambda state: state["streams"] == LIMITS.streams - 1)
    with client.chat.completions.create(**LONG) as stream:
        next(stream)
    for stream in streams:
        stream.close()


@pytest.mark.usefixtures("client")
def test_the_examples_of_the_documentation_run(address: str) -> None:
    text = (ROOT / "docs" / "openai.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8000", address).replace('"writer"', '"tiny"'), names)
    names["client"].close()
    assert json.loads(names["order"].choices[0].message.content)["number"] in (7, 8)
    assert names["reply"].choices[0].text in ("yes", "no")
