"""The OpenAPI document: what the framework makes of the routes, with what it cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from onnxpress.runtime.server.keys import is_open

DESCRIPTION = """ONNX bundles over HTTP. Routes under `/v1` are those of the OpenAI API, `/rerank` is that of
text-embeddings-inference. Every error has the body `{"error": {"message", "type", "param", "code"}}`."""

TAGS = {
    "embeddings": "Texts to vectors.",
    "rerank": "Documents in the order in which they answer a query.",
    "classify": "Labels of texts.",
    "tag": "Entities in texts.",
    "answer": "Pieces of a text that answer a question.",
    "fill": "Words for the gaps of texts.",
    "chat": "Conversations.",
    "completions": "Texts that go on.",
    "models": "What is served.",
    "health": "For whoever restarts processes and routes traffic; no key is asked for.",
}


def add_document(app: FastAPI, *, with_keys: bool) -> None:
    """Serve the document at `/openapi.json`. It is made once, when first asked for.

    Args:
        app: with all its routes.
        with_keys: requests need a key, so the document says how to send it.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
            used = {tag for operation in _operations(made) for tag in operation.get("tags", ())}
            made["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
            if with_keys:
                _ask_for_keys(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document.get("paths", {}).values() for operation in path.values()]


def _ask_for_keys(document: dict[str, Any]) -> None:
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer", "description": "One of the server's API keys."}
    document["security"] = [{"key": []}]
    for path, operations in document.get("paths", {}).items():
        for method, operation in operations.items():
            if is_open(method.upper(), path):
                operation["security"] = []
