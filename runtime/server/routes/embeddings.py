"""`/v1/embeddings`, as the OpenAI API has it."""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import Body, check_items, json_response
from onnxpress.runtime.server.calls import Call

ROUTER = APIRouter(tags=["embeddings"])


class EmbeddingRequest(Body):
    """Texts to turn into vectors."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or as base64 of little-endian float32."""


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


@ROUTER.post("/v1/embeddings", response_model=EmbeddingList)
async def embed(body: EmbeddingRequest, request: Request, service: TheService) -> Response:
    """Vectors of texts."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    check_items(len(texts), service.settings.limits, "input")
    served = service.models.find(body.model, "feature-extraction")
    call = Call.of(request, service, served)
    await call.check_input(texts)
    vectors = await call.run.embed(texts)
    encoded: list[Any] = list(vectors)
    if body.encoding_format == "base64":
        encoded = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)]
    usage = {"prompt_tokens": call.report.tokens, "total_tokens": call.report.tokens}
    return json_response({"object": "list", "data": data, "model": served.name, "usage": usage})
