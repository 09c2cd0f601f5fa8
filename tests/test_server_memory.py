"""What a server keeps of its requests, and the settings it loads models with."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from pathlib import Path

import httpx2
import pytest

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.encoder import SessionGraph
from onnxpress.runtime.faces import _TaskCall
from onnxpress.runtime.server import ServerSettings, create_app, housekeeping
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.registry import Models
from onnxpress.runtime.server.settings import Limits, ServedBundle
from onnxpress.runtime.settings import PRESETS, ServingSettings
from onnxpress.runtime.tuned import Tuned, keep_tuned

SECONDS = 30  # after which a test has hung


def settings_of(bundle: ServedBundle) -> ServingSettings:
    models = Models.load([bundle], Limits())
    try:
        graph = next(iter(models)).model.encoder.graph
        assert isinstance(graph, SessionGraph)
        return dataclasses.replace(graph.settings, threads=None)
    finally:
        models.close()


def test_a_bundle_is_loaded_with_its_settings_else_the_tuned_else_those_of_servers(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path))
    assert settings_of(ServedBundle(str(tiny_bundle))) == PRESETS["server"]
    opened = open_bundle(tiny_bundle)
    kept = ServingSettings(tokens_per_batch=128)
    name = opened.manifest.variant(None).name
    keep_tuned(opened, Tuned(name, "latency", "texts", 1.1, "2026-01-01T00:00:00Z", kept))
    assert settings_of(ServedBundle(str(tiny_bundle))) == kept
    assert settings_of(ServedBundle(str(tiny_bundle), settings="balanced")) == ServingSettings()


def calls() -> int:
    """That are in memory."""
    return sum(isinstance(value, Call | _TaskCall) for value in gc.get_objects())


async def ask(bundle: Path, count: int) -> tuple[int, int]:
    """Requests, while the collector does not run; how many calls are left of them once the workers have put down what
    they had in hand, and what is frozen meanwhile."""
    app = create_app(ServerSettings.of([bundle], limits=Limits(items=2)))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client,
    ):
        gc.disable()
        try:
            asked = [client.post("/v1/embeddings", json={"input": ["a text"] * (1 + n % 2)}) for n in range(count)]
            for answer in await asyncio.gather(*asked):
                assert answer.status_code == 200
            del answer, asked
            end = time.monotonic() + SECONDS
            while (left := calls()) and time.monotonic() < end:
                await asyncio.sleep(0.01)
            return left, gc.get_freeze_count()
        finally:
            gc.enable()


def test_nothing_of_a_request_waits_for_the_collector(tiny_bundle: Path) -> None:
    left, frozen = asyncio.run(ask(tiny_bundle, 20))
    assert left == 0
    assert frozen > 0
    assert gc.get_freeze_count() == 0  # the process is as it was


def test_free_memory_goes_back_while_the_server_works_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = 0

    def give_back() -> bool:
        nonlocal given_back
        given_back += 1
        return True

    monkeypatch.setattr(housekeeping, "give_back_free_memory", give_back)
    monkeypatch.setattr(housekeeping, "_SECONDS", 0.01)

    async def work() -> None:
        monkeypatch.setattr(housekeeping, "_WORKED_SECONDS", 1e9)
        async with housekeeping.keeping_house():
            await asyncio.sleep(0.1)
            assert given_back == 0
            monkeypatch.setattr(housekeeping, "_WORKED_SECONDS", 0.0)
            async with asyncio.timeout(SECONDS):
                while given_back < 2:
                    await asyncio.sleep(0.01)

    asyncio.run(work())
