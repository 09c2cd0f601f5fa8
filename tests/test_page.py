"""The page and the API reference as files: what is served, how a browser may keep it, and what they must not have."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from onnxpress.runtime.server.routes import page as page_route
from onnxpress.runtime.server.routes.page import page_files, page_version

DOCUMENTS = {"/": "index.html", "/docs": "docs.html"}
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
SCRIPTS = sorted(name for name in page_files() if name.endswith(".js"))
STYLES = sorted(name for name in page_files() if name.endswith(".css"))


def get(path: str, method: str = "GET", **headers: str) -> httpx2.Response:
    app = FastAPI(docs_url=None)
    app.include_router(page_route.ROUTER)

    async def send() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


class Elements(HTMLParser):
    """All elements of a document, and what stands in scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("script", "style"):
            self.inside += data.strip()


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_document_is_asked_for_again_and_kept_while_it_is_the_same(path: str) -> None:
    answer = get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    again = get(path, **{"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert get(path, **{"If-None-Match": '"another"'}).status_code == 200
    head = get(path, "HEAD")
    assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_browser_is_told_to_run_nothing_but_our_files(path: str) -> None:
    headers = get(path).headers
    policy = dict(part.partition(" ")[::2] for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[kind] == "'self'", kind
    for kind in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy[kind] == "'none'", kind
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", DOCUMENTS)
def test_everything_a_document_names_is_there_and_nothing_stands_in_line(path: str) -> None:
    elements = Elements(get(path).text)
    assert elements.inside == ""
    named = []
    for tag, attributes in elements.found:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if tag in ("script", "link", "img"):
            named.append(attributes.get("src") or attributes["href"])
    assert len(named) > 3
    for name in named:
        assert name is not None
        assert not name.startswith(("http", "//", "data:"))
        answer = get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"] == TYPES[PurePosixPath(name).suffix]
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_what_is_not_a_file_of_this_version_is_not_found() -> None:
    for path in (
        "/page/0123456789abcdef/app.js",
        f"/page/{page_version()}/missing.js",
        f"/page/{page_version()}/index.html",
        f"/page/{page_version()}/../routes/page.py",
        f"/page/{page_version()}/%2e%2e/routes/page.py",
        f"/page/{page_version()}//etc/passwd",
        f"/page/{page_version()}/",
    ):
        answer = get(path)
        assert answer.status_code == 404, path
        assert "immutable" not in answer.headers.get("cache-control", "")


def test_a_changed_file_has_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**page_files(), "app.js": page_files()["app.js"] + b"\n"}
    monkeypatch.setattr(page_route, "page_files", lambda: changed)
    assert page_route.page_version.__wrapped__() != page_version()


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_import_what_is_there_and_make_no_markup_of_text(name: str) -> None:
    script = page_files()[name].decode()
    for found in re.findall(r'^\s*(?:import|export) .*?from "([^"]+)";', script, re.M):
        path = PurePosixPath(name).parent / found
        parts: list[str] = []
        for part in path.parts:
            if part == "..":
                parts.pop()
            else:
                parts.append(part)
        assert "/".join(parts) in page_files(), found
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert forbidden not in script
    assert "localStorage" not in script
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script)


@pytest.mark.parametrize("name", STYLES)
def test_styles_load_nothing(name: str) -> None:
    style = page_files()[name].decode()
    assert "url(" not in style
    assert "@import" not in style
    assert style.count("{") == style.count("}")


def test_both_schemes_name_the_same_colours() -> None:
    style = page_files()["base.css"].decode()
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S))
    assert light - dark == {"--mono"}
    assert dark < light
    used = {name for file in STYLES for name in re.findall(r"var\((--[\w-]+)", page_files()[file].decode())}
    assert used - light == {"--share"}


def test_the_pages_are_no_part_of_the_api() -> None:
    app = FastAPI(docs_url=None)
    app.include_router(page_route.ROUTER)
    document: dict[str, Any] = app.openapi()
    assert document["paths"] == {}
