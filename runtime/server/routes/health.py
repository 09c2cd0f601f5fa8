"""`/health/live` and `/health/ready`, for whoever restarts processes and routes traffic."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import with_example

ROUTER = APIRouter(tags=["health"], prefix="/health")


class Health(BaseModel):
    """What the process is doing."""

    status: Literal["live", "ready", "draining"]

    model_config = with_example({"status": "ready"})


@ROUTER.get("/live", summary="The process answers")
async def live() -> Health:
    """Where this is not answered, restart the process."""
    return Health(status="live")


@ROUTER.get(
    "/ready",
    responses={503: {"model": Health, "description": "It is about to end."}},
    summary="The process should get requests",
)
async def ready(service: TheService, response: Response) -> Health:
    """Its models are loaded and warm, and it is not about to end (503)."""
    if service.phase == "draining":
        response.status_code = 503
    return Health(status=service.phase)
