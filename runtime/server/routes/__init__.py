"""The routes, a module for each kind; what is served, and in which order the documentation shows it."""

from __future__ import annotations

from onnxpress.runtime.server.routes import (
    answer,
    chat,
    classify,
    completions,
    embeddings,
    fill,
    health,
    metrics,
    models,
    page,
    rerank,
    tag,
)

ROUTERS = (
    chat.ROUTER,
    completions.ROUTER,
    embeddings.ROUTER,
    rerank.ROUTER,
    classify.ROUTER,
    tag.ROUTER,
    answer.ROUTER,
    fill.ROUTER,
    models.ROUTER,
    health.ROUTER,
    metrics.ROUTER,
    page.ROUTER,
)
