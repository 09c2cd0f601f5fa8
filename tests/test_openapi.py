"""The OpenAPI document of the server, and requests made from it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from onnxpress.runtime.server import ServerSettings, create_app
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.json_route import JsonRoute
from onnxpress.runtime.server.registry import Models
from onnxpress.runtime.server.routes.tag import TagRequest

GOOD = "2"
# A text without a gap, an unknown token id, a stride that is too large: no schema can say what the model must say.
EXCLUDED = [positive_data_acceptance]


def make_app(served: Models, bundles: dict[str, Path], **settings: Any) -> FastAPI:
    # "testserver" is what starlette's client, through which schemathesis asks for the document, calls a server.
    app = create_app(ServerSettings.of(list(bundles.values()), hosts=("localhost", "testserver"), **settings), served)

    @contextlib.asynccontextmanager
    async def staying(app: FastAPI) -> AsyncIterator[None]:
        yield

    # schemathesis runs the application's life to its end, and other tests share the models.
    app.router.lifespan_context = staying
    return app


@pytest.fixture(scope="module")
def app(served: Models, task_bundles: dict[str, Path]) -> FastAPI:
    return make_app(served, task_bundles)


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    found: dict[str, Any] = TestClient(app, base_url="http://localhost").get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    known = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document).items():
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= known, name
        assert {"4XX", "5XX"} & set(operation["responses"]), name
        if name.startswith("POST"):
            assert {"400", "404", "413", "415", "429", "500", "503", "504"} <= set(operation["responses"]), name


def test_every_body_has_an_example_that_works(app: FastAPI, document: dict[str, Any]) -> None:
    client = TestClient(app, base_url="http://localhost")
    examples = 0
    for name, operation in operations(document).items():
        if not name.startswith("POST"):
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for example in document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"]:
            examples += 1
            body = {key: value for key, value in example.items() if key != "model"}
            answer = client.post(name.partition(" ")[2], json=body)
            assert answer.status_code == 200, (name, answer.text)
    assert examples >= 7


def test_every_route_with_a_body_reads_it_strictly(app: FastAPI, document: dict[str, Any]) -> None:
    client = TestClient(app, base_url="http://localhost")
    for name, operation in operations(document).items():
        if "requestBody" in operation:
            path = name.partition(" ")[2]
            assert client.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415, name
            assert client.post(path, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400


def test_a_route_with_other_arguments_is_refused_when_it_is_made() -> None:
    async def wrong(body: TagRequest, number: int) -> None:
        raise AssertionError(number)

    with pytest.raises(TypeError, match="a route here takes body, request and service"):
        JsonRoute("/wrong", wrong, methods=["POST"])


def test_keys_are_in_the_document_where_they_are_asked_for(
    served: Models, task_bundles: dict[str, Path], tmp_path: Path, document: dict[str, Any]
) -> None:
    assert "security" not in document
    keys = tmp_path / "keys"
    keys.write_text("k" * 40 + "\n")
    keys.chmod(0o600)
    app = make_app(served, task_bundles, api_keys_file=str(keys))
    found = app.openapi()
    assert found["security"] == [{"key": []}]
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    open_to_all = {name for name, operation in operations(found).items() if operation.get("security") == []}
    assert open_to_all == {"GET /health/live", "GET /health/ready"}


def test_requests_made_from_the_document(app: FastAPI) -> None:
    run_all(app, examples=15)


@pytest.mark.slow
def test_many_requests_made_from_the_document(app: FastAPI) -> None:
    run_all(app, examples=400)


def run_all(app: FastAPI, examples: int) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    for found in schema.get_all_operations():
        operation = found.ok()
        statuses = Counter[str]()
        for mode in GenerationMode:
            # Of a path there is nothing that could be wrong.
            if operation.method == "post" or mode is GenerationMode.POSITIVE:
                run(operation.as_strategy(generation_mode=mode), mode, statuses, examples)
        if operation.method == "post":
            assert statuses[GOOD] >= 3, (operation.label, statuses)
            assert statuses["4"], (operation.label, statuses)


def run(cases: Any, mode: GenerationMode, statuses: Counter[str], examples: int) -> None:
    def check(case: Case) -> None:
        if mode is GenerationMode.POSITIVE:  # what is wrong with the others must stay
            make_likely(case)
        response = case.call()
        statuses[str(response.status_code)[0]] += 1
        case.validate_response(response, excluded_checks=EXCLUDED)

    quiet = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    quiet(hypothesis.given(cases)(check))()


def make_likely(case: Case) -> None:
    """Half of the bodies get what a random one hardly has: no name of a model, and a gap to fill."""
    body = case.body
    if not isinstance(body, dict) or len(json.dumps(body, default=str)) % 2:
        return
    if isinstance(body.get("model"), str):
        del body["model"]
    if case.path == "/fill":
        body.pop("targets", None)
        if isinstance(body.get("input"), str):
            body["input"] += "[MASK]"


def test_the_checks_find_a_server_error(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Call, texts: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Call, "check_input", fail)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    case = schema["/tag"]["POST"].Case(body={"input": "a"}, media_type="application/json")
    response = case.call()
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    with pytest.raises(FailureGroup, match="1 distinct failure"):
        case.validate_response(response, checks=[not_a_server_error])
