"""Requests that cannot be used get one sentence and a code; what else goes wrong tells a client nothing but that."""

from __future__ import annotations

import json
import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from onnxpress.runtime.errors import DeadlineExceededError, InvalidInputError, QueueFullError
from onnxpress.runtime.queue_counts import QueueCounts
from onnxpress.runtime.server import ServerSettings, create_app
from onnxpress.runtime.server.bodies import Body
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError, retry_seconds
from onnxpress.runtime.server.registry import Models, ServedModel
from onnxpress.runtime.server.validation import body_error

JSON = {"Content-Type": "application/json"}
KINDS = "a string, a list of strings, a list of token ids or a list of such lists, not empty"


class Watched:
    """The application, and what whoever watches a request finds."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.state: MutableMapping[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.state = scope.setdefault("state", {})
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def watched(served: Models) -> Watched:
    return Watched(create_app(ServerSettings.of(["unused"]), served))


@pytest.fixture
def client(watched: Watched) -> TestClient:
    return TestClient(watched, base_url="http://localhost", raise_server_exceptions=False)


def embed(client: TestClient, content: str | bytes) -> dict[str, Any]:
    response = client.post("/v1/embeddings", content=content, headers=JSON)
    assert response.status_code == 400, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{", "EOF while parsing an object"),
        ('{"input": "a",}', "trailing comma"),
        ("{'input': 'a'}", "key must be a string"),
        (b'{"input": "\xff"}', "invalid unicode code point"),
        ('{"input": "\\ud800"}', "hex escape"),
        ('{"input": "\\ud800\\u0041"}', "lone leading surrogate"),
        ('{"input": "a"}'.encode("utf-16"), "expected value"),
        ("[" * 100_000, "recursion limit exceeded"),
        ('{"input": ' * 100_000, "recursion limit exceeded"),
        ('{"input": "a", "dimensions": ' + "9" * 5000 + "}", "number out of range"),
        ('{"input": "a\nb"}', "control character"),
    ],
)
def test_what_is_not_json_is_said_to_be_none(client: TestClient, content: str | bytes, reason: str) -> None:
    error = embed(client, content)
    assert (error["code"], error["param"]) == ("invalid_json", None)
    assert error["message"].startswith("the body is not JSON: ")
    assert reason in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ([], None, "the body is an empty list; it should be an object"),
        ("a", None, 'the body is "a"; it should be an object'),
        ({}, "input", "input is missing"),
        ({"input": 5}, "input", f"input is 5; it should be {KINDS}"),
        ({"input": None}, "input", f"input is null; it should be {KINDS}"),
        ({"input": []}, "input", f"input is an empty list; it should be {KINDS}"),
        ({"input": [True]}, "input", f"input is a list of 1; it should be {KINDS}"),
        ({"input": ["a", 5]}, "input[1]", "input[1] is 5; it should be a string"),
        ({"input": [5, "a"]}, "input[1]", 'input[1] is "a"; it should be a whole number'),
        ({"input": [5, 1.5]}, "input[1]", "input[1] is 1.5; it should be a whole number"),
        ({"input": [-1]}, "input[0]", "input[0] is -1; it should be at least 0"),
        ({"input": [10**60]}, "input[0]", "input[0] is a huge number; it should be at most 4294967295"),
        ({"input": [[1], []]}, "input[1]", "input[1] is empty; give at least one"),
        ({"input": [[1], ["a" * 90]]}, "input[1][0]", "input[1][0] is a string of 90 characters; it should be a whole"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "it should be 'float' or 'base64'"),
        ({"input": "a", "dimensions": "8"}, "dimensions", 'dimensions is "8"; it should be a whole number'),
        ({"input": "a", "dimensions": 0}, "dimensions", "dimensions is 0; it should be at least 1"),
        ({"input": "a", "dimensions": float("nan")}, "dimensions", "dimensions is NaN; it should be a whole number"),
        ({"input": "a", "dimensions": float("inf")}, "dimensions", "dimensions is Infinity; it should be a whole"),
        ({"input": "a", "model": {"a": 1}}, "model", "model is an object; it should be a string"),
        ({"input": "a", "texts": []}, "texts", "there is no field texts; the fields are: input, model, "),
    ],
)
def test_what_is_wrong_with_a_field_is_said_in_one_sentence(
    client: TestClient, watched: Watched, body: Any, param: str | None, sentence: str
) -> None:
    error = embed(client, json.dumps(body))
    assert (error["code"], error["param"]) == ("invalid_body", param)
    assert sentence in error["message"]
    assert "\n" not in error["message"]
    told = watched.state["error"]
    assert isinstance(told, RequestError)
    assert (told.status, told.code, told.param, str(told)) == (400, "invalid_body", param, error["message"])


def test_a_number_that_no_float_holds_is_refused(client: TestClient) -> None:
    assert "Infinity" in embed(client, '{"input": "a", "dimensions": 1e999}')["message"]


def test_millions_of_errors_are_not_listed(client: TestClient) -> None:
    fields = ",".join(f'"f{number}":1' for number in range(50_000))
    assert "the body has 50,000 errors" in embed(client, f'{{"input":"a",{fields}}}')["message"]
    # Of a list the first is enough.
    assert embed(client, json.dumps({"input": [1, *["a"] * 200_000]}))["param"] == "input[1]"


class _Text(Body):
    text: str


class _Message(Body):
    role: str
    content: str | list[_Text] | None = None
    temperature: float = Field(1.0, ge=0, lt=2)


class _Chat(Body):
    messages: list[_Message] = Field(min_length=1, max_length=3)
    stop: str | list[str] | None = None


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({"messages": []}, "messages", "messages is empty; give at least one"),
        ({"messages": [{"role": "a"}] * 4}, "messages", "messages is a list of 4; it should be a list of at most 3"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "messages[0].role is missing"),
        ({"messages": [{"role": "a", "x": 1}]}, "messages[0].x", "there is no field messages[0].x"),
        (
            {"messages": [{"role": "a", "content": 5}]},
            "messages[0].content",
            "messages[0].content is 5; it should be a string or a list",
        ),
        (
            {"messages": [{"role": "a", "content": {}}]},
            "messages[0].content",
            "is an object; it should be a string or a",
        ),
        (
            {"messages": [{"role": "a", "content": [{"text": 5}]}]},
            "messages[0].content[0].text",
            "messages[0].content[0].text is 5; it should be a string",
        ),
        (
            {"messages": [{"role": "a", "content": [{"txt": "a"}]}]},
            "messages[0].content[0].text",
            "messages[0].content[0].text is missing",
        ),
        ({"messages": [{"role": "a", "temperature": 2}]}, "messages[0].temperature", "is 2; it should be below 2"),
        ({"messages": [{"role": "a"}], "stop": 5}, "stop", "stop is 5; it should be a string or a list"),
        ({"messages": [{"role": "a"}], "stop": ["a", None]}, "stop[1]", "stop[1] is null; it should be a string"),
    ],
)
def test_members_of_unions_are_told_apart(body: Any, param: str, sentence: str) -> None:
    content = json.dumps(body).encode()
    error = refused(_Chat, content)
    assert (error.param, sentence in str(error)) == (param, True), str(error)


def refused(model: type[BaseModel], content: bytes) -> RequestError:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(content)
    return body_error(caught.value, content, model)


@pytest.mark.parametrize(
    "header",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "application/jsonx",
        "application/json; charset=latin-1",
    ],
)
def test_only_what_is_said_to_be_json_is_read(client: TestClient, header: str) -> None:
    response = client.post("/v1/embeddings", content=b'{"input": "a"}', headers={"Content-Type": header})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "not_json"
    assert "utf-8" in response.text.lower() or "send the header Content-Type: application/json" in response.text


@pytest.mark.parametrize("header", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"'])
def test_json_may_be_said_in_every_way(client: TestClient, header: str) -> None:
    response = client.post("/v1/embeddings", content=b'{"input": "a"}', headers={"Content-Type": header})
    assert response.status_code == 200


def test_what_is_not_there_is_said(client: TestClient, watched: Watched) -> None:
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
    ):
        response = client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert watched.state["error"].code == code
        assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "retries"),
    [
        (QueueFullError("many wait"), 429, "rate_limit_error", "queue_full", True),
        (DeadlineExceededError("too late"), 504, "timeout_error", "timeout", False),
        (InvalidInputError("unusable"), 400, "invalid_request_error", "invalid_input", False),
        (RequestError(409, "twice", code="own", retry_after=7), 409, "invalid_request_error", "own", True),
        (ZeroDivisionError("secret"), 500, "server_error", "internal", False),
    ],
)
def test_errors_have_their_statuses(
    client: TestClient, watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    error: Exception, status: int, kind: str, code: str, retries: bool,
) -> None:  # fmt: skip
    async def fail(self: Call, texts: Any) -> None:
        raise error

    monkeypatch.setattr(Call, "check_input", fail)
    with caplog.at_level(logging.ERROR, "onnxpress.server"):
        response = client.post("/v1/embeddings", json={"input": "a"})
    found = response.json()["error"]
    assert (response.status_code, found["type"], found["code"]) == (status, kind, code)
    assert ("retry-after" in response.headers) == retries
    assert watched.state["error"].code == code
    assert watched.state["call"].served.name == "embedder"
    internal = code == "internal"
    assert ("secret" in caplog.text) == internal
    assert "secret" not in response.text


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 1), (0.2, 1), (1.01, 2), (59.5, 60), (1e9, 60)])
def test_a_client_is_told_to_wait_a_second_to_a_minute(seconds: float, expected: int) -> None:
    assert retry_seconds(seconds) == expected


def test_a_full_queue_says_how_long_it_needs(
    client: TestClient, served: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = served.find("embedder", "feature-extraction")
    assert one.model.encoder.graph.workers == 1
    counts = dict.fromkeys((field for field in QueueCounts.__dataclass_fields__), 0)
    state = QueueCounts(**(counts | {"waiting": 200, "sequences": 1000, "run_seconds": 50.0}))  # type: ignore[arg-type]
    monkeypatch.setattr(type(one.runner), "state", property(lambda self: state))
    assert one.seconds_of_queue == pytest.approx(200 * 0.05)

    async def fail(self: Call, texts: Any) -> None:
        raise QueueFullError("many wait")

    monkeypatch.setattr(Call, "check_input", fail)
    response = client.post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "10")


def test_a_queue_that_ran_nothing_needs_no_time(task_bundles: dict[str, Path], served: Models) -> None:
    writer: ServedModel = served.find("writer", "text-generation")
    assert writer.seconds_of_queue == 0
