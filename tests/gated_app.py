"""The server over a model whose graph can be held (gated_graph.py), and requests to it without a network."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server import ServerSettings, create_app
from onnxpress.runtime.server.logs import JsonLines
from onnxpress.runtime.server.registry import Models, ServedModel
from onnxpress.runtime.tasks import Embedder
from tests.gated_graph import GatedGraph, make_model


class GatedEmbedder(Embedder):
    variant = SimpleNamespace(name="fp32")  # type: ignore[assignment]
    providers = ("CPUExecutionProvider",)  # type: ignore[assignment]


def gated_app(folder: Path, graph: GatedGraph, most_waiting: int = 100, **settings: Any) -> FastAPI:
    model = make_model(folder, graph)
    model = GatedEmbedder(model.encoder, model.tokenizer, model.settings)
    runner = BatchingRunner(model, most_waiting=most_waiting)
    served = ServedModel("words", "feature-extraction", model, runner, 0)
    return create_app(ServerSettings.of(["words=nowhere"], **settings), Models([served]))


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx2.Response:
    """One request."""

    async def one() -> httpx2.Response:
        async with client(app) as asking:
            return await asking.request(method, path, **options)

    return asyncio.run(one())


def client(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


def embed(app: FastAPI, text: str | list[str] = "w1", **options: Any) -> httpx2.Response:
    return ask(app, "POST", "/v1/embeddings", json={"input": text}, **options)


# What it says of itself

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name.removeprefix("onnxpress_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(app: FastAPI) -> Samples:
    response = ask(app, "GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


class Lines(logging.Handler):
    """Lines of the log as they would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.texts) if line["logger"] == logger]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.of("onnxpress.access")


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    ours = logging.getLogger("onnxpress")
    level = ours.level
    logging.getLogger().addHandler(handler)
    ours.setLevel("DEBUG")
    yield handler
    ours.setLevel(level)
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def app(tmp_path: Path, graph: GatedGraph) -> Iterator[FastAPI]:
    app = gated_app(tmp_path, graph)
    yield app
    graph.open.set()
    app.state.service.models.close(timeout=10)
