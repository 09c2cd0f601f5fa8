"""The ASGI application: models, routes and what lies around them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Request

import onnxpress
from onnxpress.runtime.guards.guards import Guards
from onnxpress.runtime.server.errors import ErrorBody, add_error_handlers
from onnxpress.runtime.server.guarding import load_guards
from onnxpress.runtime.server.registry import Models
from onnxpress.runtime.server.settings import ServerSettings


@dataclasses.dataclass
class Service:
    """What routes and middleware share."""

    settings: ServerSettings
    models: Models
    guards: Guards
    phase: Literal["ready", "draining"] = "ready"
    """draining: it is told to end, finishes what it has, and should get no more."""
    streams: int = 0
    """Answers that are being streamed."""


def service_of(request: Request) -> Service:
    """The service of the application that got the request."""
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]
"""The type of a route's argument that wants it."""


def create_app(settings: ServerSettings, models: Models | None = None) -> FastAPI:
    """
    Args:
        settings: for the routes; address, workers and TLS are the affair of whoever runs the application.
        models: that are loaded already; None to load those of the settings, now. They are closed with the application.

    Raises:
        OnnxpressError: a bundle or a guard cannot be loaded.
    """
    # Imported here: the routes need what is defined above.
    from onnxpress.runtime.server.routes import ROUTERS

    loaded = models or Models.load(settings.bundles, settings.limits)
    guards = load_guards(settings, [model.name for model in loaded])

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        loaded.close(timeout=settings.drain_seconds)
        guards.close(timeout=settings.drain_seconds)

    app = FastAPI(
        title="onnxpress",
        version=onnxpress.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.service = Service(settings, loaded, guards)
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
