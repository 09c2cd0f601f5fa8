"""The official client of the OpenAI API against a server of its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

import onnxpress

SECONDS = 60  # after which a server has not started


@contextlib.contextmanager
def running(*bundles: str | Path) -> Iterator[str]:
    """Serve bundles; gives the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "onnxpress", "serve", "--port", str(port), *map(str, bundles)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, address)
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0].decode())
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{address}/health/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not get ready")


@pytest.fixture(scope="module")
def address(task_bundles: dict[str, Path]) -> Iterator[str]:
    with running(task_bundles["embedder"], f"sentiment={task_bundles['classifier']}") as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


TEXTS = ["where is my order?", "订单没有寄出", "a"]


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([one.embedding for one in answer.data], np.float32)


def test_embeddings(client: openai.OpenAI, task_bundles: dict[str, Path]) -> None:
    model = onnxpress.load(task_bundles["embedder"], threads=1)
    expected = model.embed(TEXTS)
    model.close()
    answer = client.embeddings.create(model="embedder", input=TEXTS)  # asks for base64
    assert vectors(answer) == pytest.approx(expected, abs=1e-6)
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert (answer.model, answer.object) == ("embedder", "list")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
    numbers = client.embeddings.create(model="embedder", input=TEXTS, encoding_format="float")
    assert vectors(numbers).tobytes() == vectors(answer).tobytes()  # shorter as text, the same as float32
    one = client.embeddings.create(model="embedder", input=TEXTS[0], user="someone", dimensions=len(expected[0]))
    assert one.data[0].embedding == pytest.approx(expected[0].tolist(), abs=1e-6)


def test_token_ids(client: openai.OpenAI, task_bundles: dict[str, Path]) -> None:
    model = onnxpress.load(task_bundles["embedder"], threads=1)
    ids = [model.tokenizer.backend.encode(text, add_special_tokens=False).ids for text in TEXTS]
    model.close()
    by_text = client.embeddings.create(model="embedder", input=TEXTS)
    by_ids = client.embeddings.create(model="embedder", input=ids)
    assert vectors(by_ids) == pytest.approx(vectors(by_text), abs=1e-6)
    assert len(client.embeddings.create(model="embedder", input=ids[0]).data) == 1
    with pytest.raises(openai.BadRequestError, match="which the model's tokenizer does not know"):
        client.embeddings.create(model="embedder", input=[[100257]])  # of OpenAI's vocabulary


def test_models(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert set(found) == {"embedder", "sentiment"}
    one = client.models.retrieve("sentiment")
    assert one.id == "sentiment"
    assert one.owned_by == "onnxpress"
    assert abs(one.created - time.time()) < 3600
    assert one.model_extra is not None
    assert one.model_extra["task"] == "text-classification"
    assert one.model_extra["labels"] == ["negative", "neutral", "positive"]


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.NotFoundError, match="there is no model 'gpt-5'; there are: embedder, sentiment"
    ) as missing:
        client.embeddings.create(model="gpt-5", input="a")
    assert (missing.value.status_code, missing.value.code, missing.value.param) == (404, "model_not_found", "model")
    assert missing.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.BadRequestError, match="is for text-classification") as wrong:
        client.embeddings.create(model="sentiment", input="a")
    assert (wrong.value.code, wrong.value.param) == ("wrong_task", "model")
    with pytest.raises(openai.BadRequestError) as unusable:
        client.embeddings.create(model="embedder", input="a", dimensions=3)
    assert unusable.value.param == "dimensions"
    assert isinstance(unusable.value.body, dict)
    assert set(unusable.value.body) == {"message", "type", "param", "code"}
    with pytest.raises(openai.BadRequestError, match="there is no field colour"):
        client.embeddings.create(model="embedder", input="a", extra_body={"colour": 1})


def test_many_at_once(address: str) -> None:
    async def all_of_them() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(client.embeddings.create(model="embedder", input=TEXTS[number % 3]) for number in range(24))
            )
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("gpt-5")
            assert [model.id async for model in client.models.list()] == ["embedder", "sentiment"]
        return [answer.data[0].embedding for answer in answers]

    found = asyncio.run(all_of_them())
    for number, vector in enumerate(found):
        assert vector == pytest.approx(found[number % 3], abs=1e-6)
    assert not np.allclose(found[0], found[1])


def test_other_routes_through_the_client(address: str, client: openai.OpenAI) -> None:
    rooted = client.with_options(base_url=address)
    found = rooted.post("/classify", body={"model": "sentiment", "input": "a"}, cast_to=dict[str, object])
    assert found["model"] == "sentiment"
