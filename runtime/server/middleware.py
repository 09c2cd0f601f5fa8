"""What lies around the routes, in one order for all of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from onnxpress.runtime.server.hosts import Hosts
from onnxpress.runtime.server.html_headers import HtmlHeaders
from onnxpress.runtime.server.keys import ApiKeys, Keys, describe_keys
from onnxpress.runtime.server.limits import RequestLimits
from onnxpress.runtime.server.request_log import RequestLog

_CORS = {
    "allow_methods": ["GET", "POST"],
    "allow_headers": ["Authorization", "Content-Type", "X-Request-Id"],
    "expose_headers": ["X-Request-Id", "Retry-After"],
    "max_age": 600,
}


def add_middleware(app: FastAPI) -> None:
    """
    Args:
        app: with its `state.service`.

    Raises:
        InvalidInputError: the API keys cannot be read.
    """
    service = app.state.service
    settings = service.settings
    keys = ApiKeys.read(settings.api_keys_file)
    layers: list[tuple[Any, dict[str, Any]]] = [  # outermost first
        (RequestLog, {"service": service}),
        (Hosts, {"settings": settings}),
    ]
    if settings.origins:
        # Before the keys: what a browser asks in advance has none.
        layers.append((CORSMiddleware, {"allow_origins": list(settings.origins), **_CORS}))
    if keys:
        layers.append((Keys, {"keys": keys}))
        describe_keys(app)
    layers += [(HtmlHeaders, {}), (RequestLimits, {"limits": settings.limits})]
    for layer, arguments in reversed(layers):
        app.add_middleware(layer, **arguments)
