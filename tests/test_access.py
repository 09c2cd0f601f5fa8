"""Keys, hosts, origins and what a page may do: requests straight into the middleware, over a few routes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server.errors import add_error_handlers
from onnxpress.runtime.server.hosts import host_name, is_loopback
from onnxpress.runtime.server.html_headers import POLICY
from onnxpress.runtime.server.keys import VARIABLE, ApiKeys, key_warnings
from onnxpress.runtime.server.metrics import Metrics
from onnxpress.runtime.server.middleware import add_middleware
from onnxpress.runtime.server.settings import Limits, ServedBundle, ServerSettings
from onnxpress.runtime.server.start_checks import check_start

KEY = "a-key-that-nobody-guesses"
SETTINGS = ServerSettings((ServedBundle("bundle"),))


@dataclasses.dataclass
class FakeService:
    settings: ServerSettings
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    traces: None = None
    phase: str = "ready"


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def make_app(**settings: Any) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    app.state.service = FakeService(dataclasses.replace(SETTINGS, **settings))
    add_middleware(app, ApiKeys.read(settings.get("api_keys_file")))
    add_error_handlers(app)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return "<p>page"

    @app.get("/health/live")
    async def live() -> str:
        return "live"

    @app.get("/metrics")
    async def metrics() -> str:
        return "0"

    @app.post("/v1/embeddings")
    async def embed() -> str:
        return "vectors"

    return app


def ask(app: FastAPI, method: str, path: str, headers: Any = None, base: str = "http://localhost:8000") -> Any:
    async def send() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base) as client:
            return await client.request(method, path, headers=headers or {})

    return asyncio.run(send())


def code_of(response: Any) -> str:
    return str(response.json()["error"]["code"])


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\n\n  {KEY}  \nanother-key-of-the-team\n")
    path.chmod(0o600)
    return path


# Keys


def test_a_key_of_the_file_is_needed(keys_file: Path) -> None:
    app = make_app(api_keys_file=str(keys_file))
    for right in (f"Bearer {KEY}", f"bearer  {KEY}", "Bearer another-key-of-the-team"):
        assert ask(app, "POST", "/v1/embeddings", {"Authorization": right}).status_code == 200
    wrong = [f"Bearer {KEY}x", "Bearer ", "Bearer # of the team", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}"]
    for headers in [{}, *({"Authorization": value} for value in wrong)]:
        response = ask(app, "POST", "/v1/embeddings", headers)
        assert (response.status_code, code_of(response)) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text


def test_without_a_key_there_is_the_health_and_an_empty_page(keys_file: Path) -> None:
    app = make_app(api_keys_file=str(keys_file))
    seen = {
        path: ask(app, "GET", path).status_code for path in ("/health/live", "/", "/metrics", "/openapi.json", "/x")
    }
    assert seen == {"/health/live": 200, "/": 200, "/metrics": 401, "/openapi.json": 401, "/x": 401}
    assert ask(app, "POST", "/").status_code == 401
    assert ask(app, "GET", "/metrics", {"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch, keys_file: Path) -> None:
    monkeypatch.setenv(VARIABLE, " first-of-the-environment, second-of-the-environment ,")
    app = make_app()
    for key, status in (("second-of-the-environment", 200), (KEY, 401)):
        assert ask(app, "GET", "/metrics", {"Authorization": f"Bearer {key}"}).status_code == status
    both = make_app(api_keys_file=str(keys_file))
    for key in ("first-of-the-environment", KEY):
        assert ask(both, "GET", "/metrics", {"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_server_that_should_have_keys_is_never_open(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        ApiKeys.read(str(path), {})
    path.write_text("# no key yet\n\n")
    with pytest.raises(InvalidInputError, match="has no API key"):
        ApiKeys.read(str(path), {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        ApiKeys.read(str(path), {})
    path.write_text("two words\n")
    with pytest.raises(InvalidInputError, match="number 1 has a space"):
        ApiKeys.read(str(path), {})
    with pytest.raises(InvalidInputError, match=VARIABLE):
        ApiKeys.read(None, {VARIABLE: " , "})
    assert not ApiKeys.read(None, {})


def test_keys_are_kept_as_digests(keys_file: Path) -> None:
    keys = ApiKeys.read(str(keys_file), {})
    assert KEY not in repr(vars(keys))
    assert keys.accept(KEY.encode())


@pytest.mark.skipif(os.name != "posix", reason="modes of files are of POSIX")
def test_a_file_that_others_can_read_is_named(keys_file: Path) -> None:
    assert key_warnings(str(keys_file), {}) == []
    keys_file.chmod(0o644)
    assert "chmod 600" in key_warnings(str(keys_file), {})[0]


def test_short_keys_are_named_without_showing_them(keys_file: Path) -> None:
    (warning,) = key_warnings(None, {VARIABLE: "secret,another-key-of-the-team"})
    assert warning.startswith("1 of the API keys")
    assert "secret," not in warning


# Hosts


@pytest.mark.parametrize("base", ["http://localhost", "http://127.0.0.1:8000", "http://[::1]:80", "http://LOCALHOST:1"])
def test_a_local_server_answers_to_local_names(base: str) -> None:
    assert ask(make_app(), "POST", "/v1/embeddings", base=base).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::2]"])
def test_a_name_that_somebody_let_point_here_is_refused(host: str) -> None:
    app = make_app()
    response = ask(app, "GET", "/metrics", {"Host": host})
    assert (response.status_code, code_of(response)) == (421, "wrong_host")
    assert ask(app, "GET", "/health/live", {"Host": host}).status_code == 200


def test_two_names_are_none() -> None:
    response = ask(make_app(), "GET", "/metrics", [("Host", "localhost"), ("Host", "evil.example")])
    assert response.status_code == 421


def test_names_can_be_given() -> None:
    app = make_app(host="0.0.0.0", hosts=("Models.example", "*.inner.example"))
    seen = {
        host: ask(app, "GET", "/metrics", {"Host": host}).status_code
        for host in ("models.example:443", "a.inner.example", "inner.example", "localhost", "ainner.example")
    }
    assert list(seen.values()) == [200, 200, 421, 421, 421]
    local = make_app(hosts=("models.example",))
    assert [ask(local, "GET", "/metrics", {"Host": host}).status_code for host in ("models.example", "localhost")] == [
        200,
        200,
    ]
    for anywhere in (make_app(host="0.0.0.0"), make_app(hosts=("*",))):
        assert ask(anywhere, "GET", "/metrics", {"Host": "models.example"}).status_code == 200


def test_the_bound_address_is_one_of_the_names() -> None:
    assert ask(make_app(host="127.0.0.2"), "GET", "/metrics", base="http://127.0.0.2:8000").status_code == 200


def test_names_and_addresses_are_read() -> None:
    assert [host_name(host) for host in (b"A.b:80", b"a.b.", b"[::1]:8000", b"[::1]")] == [
        "a.b",
        "a.b",
        "[::1]",
        "[::1]",
    ]
    assert [is_loopback(address) for address in ("127.1.2.3", "::1", "localhost", "0.0.0.0", "::", "a.example")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_names_of_the_settings_are_checked() -> None:
    for wrong in ("https://models.example", "models.example:80", "models.example/", ""):
        with pytest.raises(InvalidInputError, match=r"hosts.*without"):
            dataclasses.replace(SETTINGS, hosts=(wrong,))
    for wrong in ("shop.example", "https://shop.example/", "https://shop.example/a", "https://"):
        with pytest.raises(InvalidInputError, match=r"origins.*https://example.org"):
            dataclasses.replace(SETTINGS, origins=("*", wrong))
    dataclasses.replace(SETTINGS, hosts=("[::1]", "*", "*.a.example"), origins=("http://localhost:3000",))


# Origins


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost.evil"])
def test_pages_of_other_sites_may_not_use_it(origin: str) -> None:
    app = make_app()
    response = ask(app, "POST", "/v1/embeddings", {"Origin": origin})
    assert (response.status_code, code_of(response)) == (403, "origin_not_allowed")
    asked = ask(app, "OPTIONS", "/v1/embeddings", {"Origin": origin, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 403
    read = ask(app, "GET", "/metrics", {"Origin": origin})
    assert "access-control-allow-origin" not in read.headers  # so that the page cannot read it


def test_its_own_page_may() -> None:
    for scheme in ("http", "https"):  # https where a proxy is before it
        headers = {"Origin": f"{scheme}://localhost:8000"}
        assert ask(make_app(), "POST", "/v1/embeddings", headers).status_code == 200


def test_sites_that_are_named_may(keys_file: Path) -> None:
    app = make_app(origins=("https://shop.example",), api_keys_file=str(keys_file))
    origin = {"Origin": "https://shop.example"}
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    asked = ask(app, "OPTIONS", "/v1/embeddings", {**origin, **asking})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://shop.example"
    refused = ask(app, "POST", "/v1/embeddings", origin)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://shop.example")
    served = ask(app, "POST", "/v1/embeddings", {**origin, "Authorization": f"Bearer {KEY}"})
    assert (served.status_code, served.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    assert "Origin" in served.headers["vary"]
    other = {"Origin": "https://other.example", "Authorization": f"Bearer {KEY}"}
    assert ask(app, "POST", "/v1/embeddings", other).status_code == 403


# Pages


def test_a_page_runs_nothing_but_its_own_files() -> None:
    app = make_app()
    headers = ask(app, "GET", "/").headers
    assert headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    assert headers["referrer-policy"] == "no-referrer"
    plain = ask(app, "GET", "/metrics").headers
    assert "content-security-policy" not in plain
    assert plain["x-content-type-options"] == "nosniff"


# At the start


def test_a_server_that_all_can_use_is_named() -> None:
    few = Limits(connections=10)
    opened = dataclasses.replace(SETTINGS, host="0.0.0.0", limits=few)
    assert check_start(dataclasses.replace(SETTINGS, limits=few), {}) == []
    (warning,) = check_start(opened, {})
    assert "it has no API keys" in warning
    (warning,) = check_start(opened, {VARIABLE: KEY})
    assert "without TLS" in warning


def test_more_connections_than_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    changed = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: changed.append(both))
    assert check_start(dataclasses.replace(SETTINGS, limits=Limits(connections=100)), {}) == []
    assert check_start(dataclasses.replace(SETTINGS, limits=Limits(connections=500)), {}) == []
    (warning,) = check_start(dataclasses.replace(SETTINGS, limits=Limits(connections=2000)), {})
    assert "only 1,024 files" in warning
    assert changed == [(628, 1024), (1024, 1024)]


def test_errors_are_of_our_form(keys_file: Path) -> None:
    response = ask(make_app(api_keys_file=str(keys_file)), "GET", "/metrics")
    assert set(json.loads(response.text)["error"]) == {"message", "type", "param", "code"}


# The documentation


def test_the_documented_limits_are_those_that_hold() -> None:
    table = {}
    for line in (Path(__file__).parents[1] / "docs" / "limits.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and cells[1].startswith("`"):
            table[cells[1].strip("`")] = cells[2].replace(",", "")
    shown = {}
    for field in dataclasses.fields(Limits):
        value = getattr(Limits(), field.name)
        shown[field.name] = f"{value >> 20} MiB" if field.name.endswith("_bytes") else f"{value:g}"
    assert table == {name: "131072" if name == "tokens" else text for name, text in shown.items()}
