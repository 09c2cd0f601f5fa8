"""`/metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from onnxpress.runtime.server.application import TheService

ROUTER = APIRouter(tags=["health"])


@ROUTER.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, service: TheService) -> Response:
    """What is counted and measured, of all worker processes together (docs/metrics.md)."""
    request.app.state.watch.refresh()
    content, media_type = service.metrics.render(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)
