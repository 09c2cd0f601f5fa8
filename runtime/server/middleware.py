"""What every request passes before it reaches its route."""

from __future__ import annotations

from fastapi import FastAPI

from onnxpress.runtime.server.request_log import RequestLog


def add_middleware(app: FastAPI) -> None:
    """Pure ASGI, the outermost added last."""
    service = app.state.service
    app.add_middleware(RequestLog, service=service)
