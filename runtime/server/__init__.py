"""Bundles over HTTP: OpenAI-compatible routes, limits, guards and metrics over the in-process batching.

    from onnxpress.runtime.server import ServerSettings, create_app

    app = create_app(ServerSettings.of(["bundle"]))  # an ASGI application, for any server

Needs `onnxpress[serve]`. `onnxpress serve` runs it (running.py, supervisor.py).
"""

from __future__ import annotations

from onnxpress.runtime.server.settings import Limits, ServedBundle, ServerSettings

__all__ = ["Limits", "ServedBundle", "ServerSettings", "create_app"]


def __getattr__(name: str) -> object:
    # The settings are read by the command line, which must not wait for the HTTP libraries.
    if name != "create_app":
        raise AttributeError(f"module 'onnxpress.runtime.server' has no attribute {name!r}")
    from onnxpress.runtime.server.application import create_app

    return create_app
