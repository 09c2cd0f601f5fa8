"""runtime/server/{logs,request_log,request_record}.py: ids of requests, a line for each, no texts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from onnxpress.runtime.errors import InvalidInputError, ProviderError
from onnxpress.runtime.server.logs import configure_logs, exception_text
from tests.gated_app import Lines, app, ask, client, embed, lines
from tests.gated_graph import GatedGraph, graph

__all__ = ["app", "graph", "lines"]  # fixtures

SECRET = "c0nfidential"


def test_a_request_is_one_line(app: FastAPI, lines: Lines) -> None:
    response = embed(app, ["w1 w2", "w3"])
    (line,) = lines.requests
    assert response.status_code == 200
    assert line["request_id"] == response.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", line["request_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    times = {key: line.pop(key) for key in list(line) if key.endswith("seconds")}
    assert set(times) == {"seconds", "tokenize_seconds", "wait_seconds", "run_seconds"}
    assert 0 < times["run_seconds"] < times["seconds"]
    assert line == {
        "level": "info",
        "logger": "onnxpress.access",
        "message": "request",
        "request_id": response.headers["x-request-id"],
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 200,
        "model": "words",
        "task": "feature-extraction",
        "sequences": 2,
        "tokens_in": 3,
    }


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("abc-1_2.Z", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("two words", False),
        ('quo"te', False),
        ("line\nbreak".encode("unicode_escape").decode(), False),
    ],
)
def test_a_plain_id_of_the_client_is_kept(app: FastAPI, lines: Lines, given: str, taken: bool) -> None:
    response = ask(app, "GET", "/health/live", headers={"X-Request-Id": given})
    assert (response.headers["x-request-id"] == given) == taken
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", response.headers["x-request-id"])
    assert lines.requests[0]["request_id"] == response.headers["x-request-id"]


def test_routes_are_named_as_they_are_declared(app: FastAPI, lines: Lines) -> None:
    for path in ("/health/live", "/v1/models/other", f"/{SECRET}?key={SECRET}", "/v1/embeddings"):
        ask(app, "GET", path)
    ask(app, SECRET, "/v1/embeddings")
    assert [(line["method"], line["route"], line["status"]) for line in lines.requests] == [
        ("GET", "/health/live", 200),
        ("GET", "/v1/models/{name}", 404),
        ("GET", None, 404),
        ("GET", "/v1/embeddings", 405),
        ("other", "/v1/embeddings", 405),
    ]
    assert all(line["error"] for line in lines.requests[1:])


def test_probes_are_logged_for_debugging_only(app: FastAPI, lines: Lines) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        ask(app, "GET", path)
    app.state.service.phase = "draining"
    ask(app, "GET", "/health/ready")
    assert [line["level"] for line in lines.requests] == ["debug"] * 3 + ["warning"]


def test_nothing_of_a_request_is_logged_or_counted(app: FastAPI, lines: Lines, graph: GatedGraph) -> None:
    @app.post("/fails")
    async def fails(request: Request) -> None:
        body = (await request.body()).decode()
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"a task failed\nwith {body}", "exception": ValueError(body)}
        )
        try:
            json.loads(body)
        except ValueError as error:
            raise KeyError(body) from error

    key = {"Authorization": f"Bearer {SECRET}", "X-Request-Id": f"{SECRET} "}
    assert embed(app, f"w1 {SECRET}", headers=key).status_code == 200
    assert ask(app, "POST", "/v1/embeddings", json={"input": 1, SECRET: SECRET}, headers=key).status_code == 400
    assert ask(app, "POST", "/v1/embeddings", content=SECRET, headers=key).status_code >= 400
    assert ask(app, "POST", "/v1/embeddings", json={"input": "w1", "model": SECRET}).status_code == 404
    assert ask(app, "POST", f"/fails?q={SECRET}", content=SECRET, headers=key).status_code == 500
    graph.fail_on = 3
    assert embed(app, f"w3 {SECRET}").status_code == 500
    assert len(lines.requests) == 6
    assert SECRET not in "".join(lines.texts)
    assert SECRET not in ask(app, "GET", "/metrics").text


def test_what_nobody_expected_is_answered_and_logged_with_its_place(
    app: FastAPI, lines: Lines, graph: GatedGraph
) -> None:
    graph.fail_on = 3
    response = embed(app, "w3")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    (failure,) = lines.of("onnxpress.server")
    (request,) = lines.requests
    assert failure["request_id"] == request["request_id"] == response.headers["x-request-id"]
    assert "gated_graph.py" in failure["exception"]
    assert "builtins.ValueError: (its text is left out" in failure["exception"]
    assert (request["level"], request["error"]) == ("error", "internal")


def test_an_answer_that_breaks_off_is_left_to_the_server(app: FastAPI, lines: Lines) -> None:
    @app.get("/breaks")
    async def breaks() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "one"
            raise RuntimeError("broken")

        return StreamingResponse(parts())

    with pytest.raises(RuntimeError, match="broken"):
        ask(app, "GET", "/breaks")
    (line,) = lines.requests
    assert (line["route"], line["status"], line["error"], line["level"]) == ("/breaks", 200, "internal", "error")


def test_records_of_handlers_have_the_id_of_their_own_request(app: FastAPI, lines: Lines) -> None:
    meeting: list[asyncio.Event] = []

    @app.get("/says/{word}")
    async def says(word: str) -> None:
        if not meeting:
            meeting.append(asyncio.Event())
            await meeting[0].wait()
        else:
            meeting[0].set()
        logging.getLogger("onnxpress.test").info("word %s", word)
        await asyncio.to_thread(logging.getLogger("onnxpress.test").info, "thread %s", word)

    async def both() -> None:
        async with client(app) as asking:
            await asyncio.gather(*(asking.get(f"/says/{x}", headers={"X-Request-Id": f"id-{x}"}) for x in "ab"))

    asyncio.run(both())
    said = {line["message"]: line["request_id"] for line in lines.of("onnxpress.test")}
    assert said == {"word a": "id-a", "word b": "id-b", "thread a": "id-a", "thread b": "id-b"}


def test_a_client_that_leaves_is_noted(app: FastAPI, lines: Lines) -> None:
    async def gone(request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    @app.get("/cancelled")
    async def cancelled(request: Request) -> None:
        await gone(request)
        raise asyncio.CancelledError

    @app.get("/reads")
    async def reads(request: Request) -> None:
        await gone(request)
        raise ClientDisconnect

    @app.get("/answers")
    async def answers(request: Request) -> str:
        await gone(request)
        return "too late"

    for path in ("/cancelled", "/reads", "/answers"):
        leave(app, path)
    assert [line["route"] for line in lines.requests] == ["/cancelled", "/reads", "/answers"]
    for line in lines.requests:
        assert (line["status"], line["disconnected"], "error" in line, line["level"]) == (499, True, False, "info")
    assert not lines.of("onnxpress.server")
    assert 'onnxpress_disconnects_total{route="/reads"} 1.0' in ask(app, "GET", "/metrics").text


def leave(app: FastAPI, path: str) -> None:
    """A request whose client leaves once it is sent."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    async def request() -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [(b"host", b"localhost")],
            "query_string": b"",
        }
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    asyncio.run(request())


def test_what_the_end_of_the_server_cuts_off_is_noted(app: FastAPI, lines: Lines) -> None:
    @app.get("/cancelled")
    async def cancelled() -> None:
        raise asyncio.CancelledError

    app.state.service.phase = "draining"
    leave(app, "/cancelled")
    (line,) = lines.requests
    assert (line["status"], line["error"], "disconnected" in line) == (503, "shutting_down", False)


# Lines


def test_exceptions_are_told_with_their_causes() -> None:
    def fail() -> None:
        try:
            raise OSError(2, "No such file or directory", "weights")
        except OSError:
            try:
                raise ValueError(SECRET)
            except ValueError as error:
                raise ProviderError("use another provider") from error

    with pytest.raises(ProviderError) as failed:
        fail()
    text = exception_text(failed.value)
    ends = [part.splitlines()[-1] for part in text.split("\nwhich led to:\n")]
    assert ends[0] == "builtins.FileNotFoundError: [Errno 2] No such file or directory: 'weights'"
    assert ends[1].startswith("builtins.ValueError: (its text is left out")
    assert ends[2] == "onnxpress.runtime.errors.ProviderError: use another provider"
    assert text.count(f"in {fail.__name__}") == 3
    assert SECRET not in text
    assert f"ValueError: {SECRET}" in exception_text(failed.value, quoting=True)
    group = exception_text(ExceptionGroup(SECRET, [ValueError(SECRET), TimeoutError("late")]))
    assert [line.partition(":")[0] for line in group.splitlines()] == [
        "builtins.TimeoutError",
        "which led to",
        "builtins.ValueError",
        "which led to",
        "builtins.ExceptionGroup",
    ]
    assert SECRET not in group
    assert "left out" in exception_text(InvalidInputError(SECRET))  # ours, and about what somebody gave


def logged(level: str) -> list[dict[str, Any]]:
    """What a process writes whose logs are configured."""
    program = f"""
import logging
from onnxpress.runtime.server.logs import configure_logs
configure_logs({level!r})
for name in ("onnxpress.server", "uvicorn.error"):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), level)("%s says 鑫", level)
try:
    raise ValueError("quoted")
except ValueError:
    logging.getLogger("uvicorn.error").exception("Exception in ASGI application\\nwith quoted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_process_writes_lines_of_json() -> None:
    written = logged("info")
    assert [(line["logger"], line["level"]) for line in written] == [
        ("onnxpress.server", "info"),
        ("onnxpress.server", "warning"),
        ("uvicorn.error", "warning"),
        ("uvicorn.error", "error"),
    ]
    assert written[0]["message"] == "info says 鑫"
    assert written[-1]["message"] == "Exception in ASGI application"
    assert "ValueError: (its text" in written[-1]["exception"]
    assert "quoted" not in json.dumps(written[:-1])


def test_debugging_shows_all() -> None:
    written = logged("debug")
    assert [line["level"] for line in written] == ["debug", "info", "warning", "warning", "error"]
    assert written[-1]["exception"].endswith("ValueError: quoted")
    assert written[-1]["message"].endswith("with quoted")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'loud'; it may be debug, info"):
        configure_logs("loud")
