"""The routes, a module for each kind; what is served, and in which order the documentation shows it."""

from __future__ import annotations

from onnxpress.runtime.server.routes import chat, completions, embeddings, health, models

ROUTERS = (chat.ROUTER, completions.ROUTER, embeddings.ROUTER, models.ROUTER, health.ROUTER)
