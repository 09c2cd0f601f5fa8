"""Runs the application with uvicorn in this process."""

from __future__ import annotations

import sys

import uvicorn

from onnxpress.runtime.server.application import create_app
from onnxpress.runtime.server.connections import uvicorn_options
from onnxpress.runtime.server.settings import ServerSettings
from onnxpress.runtime.server.start_checks import check_start
from onnxpress.runtime.server.tls import tls_options


def run(settings: ServerSettings) -> int:
    """Serve until told to end. Returns the exit status."""
    for sentence in check_start(settings):
        print(f"onnxpress: warning: {sentence}", file=sys.stderr)  # noqa: T201
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="warning",
        **tls_options(settings.tls_certificate, settings.tls_key),
        **uvicorn_options(settings.limits),
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    uvicorn.Server(config).run()
    return 0
