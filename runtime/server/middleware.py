"""What lies around the routes, in one order for all of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from onnxpress.runtime.server.hosts import Hosts
from onnxpress.runtime.server.html_headers import HtmlHeaders
from onnxpress.runtime.server.keys import ApiKeys, Keys
from onnxpress.runtime.server.limits import RequestLimits
from onnxpress.runtime.server.request_log import RequestLog

_CORS = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["Authorization", "Content-Type", "X-Request-Id"],
    "expose_headers": ["X-Request-Id", "Retry-After"],
    "max_age": 600,
}


def add_middleware(app: FastAPI, keys: ApiKeys) -> None:
    """
    Args:
        app: with its `state.service`.
        keys: that requests must have one of, if there are any.
    """
    service = app.state.service
    settings = service.settings
    layers: list[tuple[Any, dict[str, Any]]] = [  # outermost first
        (RequestLog, {"service": service}),
        (Hosts, {"settings": settings}),
    ]
    if settings.origins:
        # Before the keys: what a browser asks in advance has none.
        layers.append((CORSMiddleware, {"allow_origins": list(settings.origins), **_CORS}))
    if keys:
        layers.append((Keys, {"keys": keys}))
    layers += [(HtmlHeaders, {}), (RequestLimits, {"limits": settings.limits})]
    for layer, arguments in reversed(layers):
        app.add_middleware(layer, **arguments)
