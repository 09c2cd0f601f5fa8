"""runtime/server/registry.py and `/v1/models`: which bundles are served, and which of them a request gets."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.model import SERVED
from onnxpress.runtime.server import Limits, ServedBundle, ServerSettings, create_app
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.registry import Models
from tests.served_models import HIDDEN, LABELS, MAX_LENGTH, NAMES, make_bundle
from tests.tiny_generator import SETTINGS


def load(*bundles: ServedBundle, limits: Limits | None = None) -> Models:
    return Models.load(bundles, limits or Limits(), threads=1)


def test_every_task_that_a_bundle_may_have_is_served(served: Models) -> None:
    assert {model.task for model in served} == set(SERVED)
    assert [model.name for model in served] == list(NAMES.values())


def test_a_model_is_found_by_name_and_task(served: Models) -> None:
    for task, name in NAMES.items():
        assert served.find(name, task).name == name
        assert served.find(None, task).name == name
    with pytest.raises(RequestError, match="there is no model 'nobody'; there are: embedder, reranker") as missing:
        served.find("nobody", "fill-mask")
    assert (missing.value.status, missing.value.code, missing.value.param) == (404, "model_not_found", "model")
    with pytest.raises(
        RequestError, match="'tagger' is for token-classification; this route is for fill-mask"
    ) as wrong:
        served.find("tagger", "fill-mask")
    assert (wrong.value.status, wrong.value.code) == (400, "wrong_task")


def test_without_a_name_the_usual_task_of_the_route_comes_first(served: Models) -> None:
    assert served.find(None, "text-classification", "zero-shot-classification").name == "classifier"
    assert served.find(None, "zero-shot-classification", "text-classification").name == "nli"


def test_of_several_one_must_be_named(task_bundles: dict[str, Path]) -> None:
    path = str(task_bundles["embedder"])
    models = load(ServedBundle(path, "a"), ServedBundle(path, "b"), ServedBundle(str(task_bundles["nli"])))
    try:
        with pytest.raises(RequestError, match="those for feature-extraction are: a, b") as several:
            models.find(None, "feature-extraction")
        assert (several.value.status, several.value.param) == (400, "model")
        assert models.find("b", "feature-extraction").name == "b"
        assert models.find(None, "text-classification", "zero-shot-classification").name == "nli"
        with pytest.raises(RequestError, match="no model for fill-mask is served here") as none:
            models.find(None, "fill-mask")
        assert none.value.status == 404
    finally:
        models.close(timeout=30)


def test_what_cannot_be_loaded_is_named_before_anything_is_loaded(
    task_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxpress.runtime.server import registry

    def unwanted(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(registry, "load", unwanted)
    good = ServedBundle(str(task_bundles["embedder"]))
    with pytest.raises(InvalidBundleError, match=r"^mine: there is no bundle folder at"):
        load(good, ServedBundle(str(tmp_path / "none"), "mine"))
    with pytest.raises(InvalidBundleError, match=r"^nli: the bundle has no variant 'int1'; it has: fp32"):
        load(good, ServedBundle(str(task_bundles["nli"]), variant="int1"))


def test_what_fails_while_it_is_loaded_is_named_and_the_others_are_closed(
    task_bundles: dict[str, Path], tmp_path: Path
) -> None:
    broken = shutil.copytree(task_bundles["tagger"], tmp_path / "broken")
    model = broken / "model.onnx"
    model.write_bytes(b"\0" * model.stat().st_size)
    before = set(threading.enumerate())
    with pytest.raises(Exception, match=r"^broken: ") as caught:
        load(ServedBundle(str(task_bundles["embedder"])), ServedBundle(str(broken)))
    assert "\n" not in str(caught.value)
    assert set(threading.enumerate()) <= before


def test_models_share_the_threads_of_the_process(task_bundles: dict[str, Path]) -> None:
    names = ("embedder", "classifier", "tagger", "reader")
    before = threading.active_count()
    models = Models.load([ServedBundle(str(task_bundles[name]), threads=2) for name in names], Limits())
    try:
        client = TestClient(create_app(ServerSettings.of(["unused"]), models), base_url="http://localhost")
        many = ["where is my order"] * 60
        for path, body in (
            ("/v1/embeddings", {"input": many}),
            ("/classify", {"input": many}),
            ("/tag", {"input": many}),
            ("/answer", {"question": many, "context": "a cat"}),
        ):
            assert client.post(path, json=body).status_code == 200
        assert threading.active_count() - before <= 2
    finally:
        models.close(timeout=30)
    assert all(model.runner.state.waiting == 0 for model in models)


def test_closed_models_say_that_the_server_ends(task_bundles: dict[str, Path]) -> None:
    settings = ServerSettings((ServedBundle(str(task_bundles["embedder"]), threads=1),))
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    response = TestClient(app, base_url="http://localhost").post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert int(response.headers["retry-after"]) >= 1


def test_the_cards_of_models(served: Models, tmp_path: Path) -> None:
    client = TestClient(create_app(ServerSettings.of(["unused"]), served), base_url="http://localhost")
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    cards = {card["id"]: card for card in listed["data"]}
    assert list(cards) == list(NAMES.values())
    for task, name in NAMES.items():
        card = cards[name]
        assert client.get(f"/v1/models/{name}").json() == card
        assert (card["object"], card["owned_by"], card["task"]) == ("model", "onnxpress", task)
        assert (card["variant"], card["provider"]) == ("fp32", "CPUExecutionProvider")
        assert abs(card["created"] - time.time()) < 7200
        assert None not in card.values()
    assert cards["embedder"]["dimension"] == HIDDEN
    assert cards["embedder"]["max_tokens"] == MAX_LENGTH
    assert cards["writer"]["max_tokens"] == SETTINGS.context
    assert cards["tagger"]["labels"] == list(LABELS["token-classification"])
    assert "labels" not in cards["reranker"]
    assert cards["filler"]["mask_token"] == "[MASK]"
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    models = load(ServedBundle(str(make_bundle(tmp_path / "p", "feature-extraction", embedding=prompts))))
    try:
        card = (
            TestClient(create_app(ServerSettings.of(["unused"]), models), base_url="http://localhost")
            .get("/v1/models/p")
            .json()
        )
        assert (card["prompts"], card["default_prompt_name"]) == ({"query": "q: "}, "query")
    finally:
        models.close(timeout=30)
