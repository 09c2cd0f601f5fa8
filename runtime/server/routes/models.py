"""`/v1/models`: what is served."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.registry import ServedModel

ROUTER = APIRouter(tags=["models"])


class ModelCard(BaseModel):
    """A model, with what the OpenAI API does not say of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["onnxpress"] = "onnxpress"
    task: str
    variant: str
    provider: str


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@ROUTER.get("/v1/models")
async def list_models(service: TheService) -> ModelList:
    """The models and their tasks."""
    return ModelList(data=[_card(model) for model in service.models])


@ROUTER.get("/v1/models/{name}")
async def show_model(name: str, service: TheService) -> ModelCard:
    """One model."""
    return _card(service.models.find(name, *{model.task for model in service.models}))


def _card(served: ServedModel) -> ModelCard:
    return ModelCard(
        id=served.name,
        created=served.loaded,
        task=served.task,
        variant=served.model.variant.name,
        provider=served.model.providers[0],
    )
