"""The ASGI application: models, routes and what lies around them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Depends, FastAPI, Request

import onnxpress
from onnxpress.runtime.guards.guards import Guards
from onnxpress.runtime.server.document import add_document
from onnxpress.runtime.server.errors import ErrorBody, add_error_handlers
from onnxpress.runtime.server.guarding import load_guards
from onnxpress.runtime.server.housekeeping import keeping_house
from onnxpress.runtime.server.keys import ApiKeys
from onnxpress.runtime.server.metrics import Metrics
from onnxpress.runtime.server.registry import Models
from onnxpress.runtime.server.settings import ServerSettings
from onnxpress.runtime.server.sharing import threads_of_each
from onnxpress.runtime.server.traces import Traces

if TYPE_CHECKING:
    from onnxpress.runtime.server.watching import Watch


@dataclasses.dataclass
class Service:
    """What routes and middleware share."""

    settings: ServerSettings
    models: Models
    metrics: Metrics
    guards: Guards
    phase: Literal["ready", "draining"] = "ready"
    """draining: it is told to end, finishes what it has, and should get no more."""
    traces: Traces | None = None
    streams: int = 0
    """Answers that are being streamed."""


async def service_of(request: Request) -> Service:
    """The service of the application that got the request. Asynchronous, for FastAPI runs other functions in threads,
    which costs a request more than all the rest of its way through FastAPI."""
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
        OnnxpressError: a bundle or a guard cannot be loaded, keys cannot be read, or traces cannot be sent.
    """
    # Imported here: the routes need what is defined above.
    from onnxpress.runtime.server.middleware import add_middleware
    from onnxpress.runtime.server.routes import ROUTERS
    from onnxpress.runtime.server.watching import Watch

    keys = ApiKeys.read(settings.api_keys_file)
    metrics = Metrics()
    traces = None if settings.traces is None else Traces.open(settings.traces)
    loaded = models or Models.load(settings.bundles, settings.limits, on_batch=metrics.on_batch)
    guards = load_guards(
        settings,
        [model.name for model in loaded],
        threads=threads_of_each(settings.workers),
        on_decision=lambda made: metrics.guard_decision(made.guard, made.place, made.blocked, failed=made.failed),
    )
    service = Service(settings, loaded, metrics, guards, traces=traces)
    watch = Watch(service)
    app = FastAPI(
        title="onnxpress",
        version=onnxpress.__version__,
        lifespan=_lifespan(service, watch),
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
        # It would tell OpenTelemetry paths, queries and bodies that are no use; traces.py does without.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.service, app.state.watch = service, watch
    add_middleware(app, keys)
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    add_document(app, with_keys=bool(keys))
    return app


def _lifespan(service: Service, watch: Watch) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What goes on beside requests, and the end, when there are none."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(watch.keep())
        async with keeping_house():
            yield
        watching.cancel()
        seconds = service.settings.drain_seconds
        service.models.close(timeout=seconds)
        watch.refresh()
        if service.traces is not None:
            await asyncio.to_thread(service.traces.close)
        service.guards.close(timeout=seconds)

    return life
