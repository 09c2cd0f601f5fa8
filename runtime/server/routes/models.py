"""`/v1/models`: what is served."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import with_example
from onnxpress.runtime.server.errors import ERRORS
from onnxpress.runtime.server.registry import ServedModel

ROUTER = APIRouter(tags=["models"])


class ModelCard(BaseModel):
    """A model, with what the OpenAI API does not say of it."""

    id: str = Field(description="What requests call it.")
    object: Literal["model"] = "model"
    created: int = Field(description="When it was loaded, in seconds since 1970.")
    owned_by: Literal["onnxpress"] = "onnxpress"
    task: str = Field(description="Which routes it is for.")
    variant: str
    provider: str = Field(description="What onnxruntime runs it on.")
    max_tokens: int = Field(description="That it reads at once, special tokens included.")
    dimension: int | None = Field(None, description="Of the vectors of an embedder.")
    prompts: dict[str, str] | None = Field(None, description="Of an embedder, by `prompt_name`.")
    default_prompt_name: str | None = Field(None, description="Of an embedder that puts one before each text.")
    labels: list[str] | None = Field(None, description="Of a model that classifies texts or tokens.")
    mask_token: str | None = Field(None, description="Of a model that fills gaps: what marks one.")

    model_config = with_example(
        {
            "id": "minilm",
            "object": "model",
            "created": 1764000000,
            "owned_by": "onnxpress",
            "task": "feature-extraction",
            "variant": "int8",
            "provider": "CPUExecutionProvider",
            "max_tokens": 256,
            "dimension": 384,
            "prompts": {},
        }
    )


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@ROUTER.get("/v1/models", response_model_exclude_none=True, summary="The models")
async def list_models(service: TheService) -> ModelList:
    """What is served, and what requests need to know of it."""
    return ModelList(data=[_card(model) for model in service.models])


@ROUTER.get("/v1/models/{name}", response_model_exclude_none=True, responses={404: ERRORS[404]}, summary="One model")
async def show_model(name: str, service: TheService) -> ModelCard:
    """What is known of a model."""
    return _card(service.models.find(name, *{model.task for model in service.models}))


def _card(served: ServedModel) -> ModelCard:
    settings = served.model.bundle.manifest.settings
    embedding, labels, generation = settings.embedding, settings.labels, settings.generation
    return ModelCard(
        id=served.name,
        created=served.loaded,
        task=served.task,
        variant=served.model.variant.name,
        provider=served.model.providers[0],
        max_tokens=settings.tokenizer.max_length if generation is None else generation.context,
        dimension=None if embedding is None else embedding.dimension,
        prompts=None if embedding is None else embedding.prompts,
        default_prompt_name=None if embedding is None else embedding.default_prompt_name,
        labels=None if labels is None or served.task == "text-ranking" else list(labels.names),
        mask_token=None if settings.mask is None else settings.mask.token,
    )
