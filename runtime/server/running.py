"""Runs the application with uvicorn in this process."""

from __future__ import annotations

import uvicorn

from onnxpress.runtime.server.application import create_app
from onnxpress.runtime.server.settings import ServerSettings


def run(settings: ServerSettings) -> int:
    """Serve until told to end. Returns the exit status."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        limit_concurrency=settings.limits.connections,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    uvicorn.Server(config).run()
    return 0
