"""The page at `/`, the API reference at `/docs`, and the files of both.

Everything comes from this server: no file of another origin, nothing in line. The files lie under a name made of their
content, so that a browser keeps them until they change.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, Request, Response

ROUTER = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Browsers that know this refuse to make markup of text, whatever a script tries.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_GUARDED = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_FOREVER = "public, max-age=31536000, immutable"


@functools.cache
def page_files() -> Mapping[str, bytes]:
    """The files by their path in the folder, read once."""
    found = sorted(path for path in _FOLDER.rglob("*") if path.suffix in _TYPES)
    return {path.relative_to(_FOLDER).as_posix(): path.read_bytes() for path in found}


@functools.cache
def page_version() -> str:
    """A name for the content of all files; every worker process finds the same."""
    digest = hashlib.sha256()
    for name, content in page_files().items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


@ROUTER.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Models, health, figures and a box to try each task."""
    return _document(request, "index.html")


@ROUTER.api_route("/docs", methods=["GET", "HEAD"])
async def reference(request: Request) -> Response:
    """What routes there are, from the OpenAPI document."""
    return _document(request, "docs.html")


@ROUTER.get("/page/{version}/{name:path}")
async def file(version: str, name: str) -> Response:
    """A file of the two."""
    content = page_files().get(name)
    if content is None or version != page_version() or name.endswith(".html"):
        return Response("There is no such file.", 404, {"Cache-Control": "no-store"}, "text/plain; charset=utf-8")
    return Response(content, headers={**_GUARDED, "Cache-Control": _FOREVER}, media_type=_TYPES[Path(name).suffix])


def _document(request: Request, name: str) -> Response:
    """A document that names its files; a browser asks each time whether it is still the same."""
    tag = f'"{page_version()}"'
    headers = {**_GUARDED, "Cache-Control": "no-cache", "ETag": tag}
    if request.headers.get("If-None-Match") == tag:
        return Response(status_code=304, headers=headers)
    text = page_files()[name].decode().replace("{assets}", f"page/{page_version()}")
    return Response(text, headers=headers, media_type=_TYPES[".html"])
