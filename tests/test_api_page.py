"""docs/api.md: its examples are run, and answer what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from onnxpress.runtime.server import ServerSettings, create_app
from onnxpress.runtime.server.registry import Models

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
ADDRESS = "http://127.0.0.1:8000"
EXAMPLE = re.compile(r"```sh\n(curl .*?)```\n\n```json\n(.*?)```\n", re.DOTALL)
EXAMPLES = EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))
_CHANGES = {"created"}


def run(client: TestClient, command: str) -> Any:
    """What the command would get, a JSON document."""
    program, url, *options = shlex.split(command)
    assert program == "curl"
    assert url.startswith(ADDRESS)
    given = dict(zip(options[::2], options[1::2], strict=True))
    path = url.removeprefix(ADDRESS)
    if "-d" not in given:
        return client.get(path).json()
    name, _, value = given["-H"].partition(": ")
    return client.post(path, content=given["-d"], headers={name: value}).json()


def nearly(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: nearly(one) for key, one in value.items() if key not in _CHANGES}
    if isinstance(value, list):
        return [nearly(one) for one in value]
    return pytest.approx(value, abs=2e-4) if isinstance(value, float) else value


def without_changing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_changing(one) for key, one in value.items() if key not in _CHANGES}
    return [without_changing(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("command", "answer"), EXAMPLES, ids=[one.split()[1].removeprefix(ADDRESS) for one, _ in EXAMPLES]
)
def test_an_example_answers_what_the_page_says(served: Models, command: str, answer: str) -> None:
    client = TestClient(create_app(ServerSettings.of(["unused"]), served), base_url="http://localhost")
    assert without_changing(run(client, command)) == nearly(json.loads(answer))


def test_every_route_with_a_body_has_an_example(served: Models) -> None:
    document = create_app(ServerSettings.of(["unused"]), served).openapi()
    shown = {shlex.split(command)[1].removeprefix(ADDRESS) for command, _ in EXAMPLES}
    reading = {"embeddings", "rerank", "classify", "tag", "answer", "fill"}
    routes = {
        path for path, methods in document["paths"].items() if reading & set(methods.get("post", {}).get("tags", ()))
    }
    assert len(routes) == 8
    assert routes <= shown


def test_every_error_code_of_the_page_is_one() -> None:
    sources = (Path(__file__).parent.parent / "runtime" / "server").rglob("*.py")
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    table = PAGE.read_text(encoding="utf-8").partition("| Status |")[2]
    codes = [
        name
        for row in table.splitlines()[2:]
        if row.startswith("|")
        for name in re.findall(r"`(\w+)`", row.split("|")[3])
    ]
    assert len(codes) >= 14
    for name in codes:
        assert f'"{name}"' in code, name
