"""`/v1/embeddings`, as the OpenAI API has it."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import (
    MOST,
    Body,
    Name,
    Texts,
    Usage,
    check_finite,
    check_items,
    json_response,
    usage_of,
    with_example,
)
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.json_route import model_router
from onnxpress.runtime.server.registry import ServedModel
from onnxpress.runtime.tasks.embedding import Embedder

ROUTER = model_router("embeddings")

TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "(text)"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, bool):
        return None
    return next((kind for cls, kind in _KINDS if isinstance(first, cls)), None)


_KINDS: tuple[tuple[type, str], ...] = ((str, "(texts)"), (int, "(ids)"), (list, "(lists of ids)"))
Input = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[Texts, Tag("(texts)")]
    | Annotated[TokenIds, Tag("(ids)")]
    | Annotated[Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)], Tag("(lists of ids)")],
    Discriminator(
        _kind, "embedding_input", "a string, a list of strings, a list of token ids or a list of such lists, not empty"
    ),
]


class EmbeddingRequest(Body):
    """Texts to turn into vectors."""

    input: Input = Field(
        description="A text, a list of texts, the token ids of a text, or a list of such lists. Token ids are those of "
        "the model's own tokenizer, not of OpenAI's; special tokens are added unless they are there."
    )
    model: Name = None
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32.")
    dimensions: int | None = Field(
        None, ge=1, le=MOST, description="Only the model's own number: no bundle says that its vectors may be cut."
    )
    prompt_name: str | None = Field(
        None, description="Extension: one of the model's prompts (see `/v1/models`), put before each text."
    )
    prompt: str | None = Field(
        None, description="Extension: a prompt as text; the empty one is none, also for a model with a default prompt."
    )
    user: str | None = Field(None, description="Taken and not used.")

    model_config = with_example({"model": "minilm", "input": ["where is my order?", "hello"]})


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="Numbers, or as base64 of little-endian float32.")


class EmbeddingList(BaseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage

    model_config = with_example(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456]}],
            "model": "minilm",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }
    )


@ROUTER.post("/v1/embeddings", response_model=EmbeddingList, summary="Vectors of texts")
async def embed(body: EmbeddingRequest, request: Request, service: TheService) -> Response:
    """As the OpenAI API has it: a vector for each text, in their order. Longer texts than the model reads are cut."""
    served = service.models.find(body.model, "feature-extraction")
    limits = service.settings.limits
    given = _items(body.input)
    check_items(len(given), limits, "input")
    _check_dimensions(body, served)
    call = Call.of(request, service, served)
    if isinstance(given[0], str):
        await call.check_input(given)
        vectors = await call.run.embed(given, prompt_name=body.prompt_name, prompt=body.prompt)
    else:
        _check_tokens(body, given, served, limits.tokens)
        if service.settings.guards:
            await call.check_input(served.model.tokenizer.backend.decode_batch(given, skip_special_tokens=False))
        vectors = await call.run.embed_tokens(given)
    check_finite(vectors)
    encoded: list[Any] = list(vectors)
    if body.encoding_format == "base64":
        encoded = [base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode() for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)]
    return json_response({"object": "list", "data": data, "model": served.name, "usage": usage_of(call.report.tokens)})


def _items(given: Any) -> list[Any]:
    """Texts, or lists of token ids."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def _check_dimensions(body: EmbeddingRequest, served: ServedModel) -> None:
    dimension = served.model.embedding.dimension
    if body.dimensions not in (None, dimension):
        raise RequestError(
            400,
            f"dimensions is {body.dimensions}; the vectors of {served.name!r} have {dimension}, and its bundle does "
            "not say that they may be cut",
            param="dimensions",
            code="dimensions_not_supported",
        )


def _check_tokens(body: EmbeddingRequest, given: list[list[int]], served: ServedModel, most: int) -> None:
    model = served.model
    assert isinstance(model, Embedder)
    if (count := sum(map(len, given))) > most:
        raise RequestError(
            400, f"input has {count:,} token ids; {most:,} are allowed", param="input", code="too_many_tokens"
        )
    if body.prompt_name is not None or body.prompt:
        param = "prompt" if body.prompt else "prompt_name"
        raise RequestError(400, f"a prompt is text and cannot be put before token ids; leave {param} out", param=param)
    if body.prompt is None and model.embedding.default_prompt_name is not None:
        raise RequestError(
            400,
            f"{served.name!r} puts its prompt {model.embedding.default_prompt_name!r} before each text, which cannot "
            'be put before token ids; send texts, or "prompt": "" for none',
            param="input",
        )
