"""`/tag`: entities in texts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response
from pydantic import BaseModel, Field

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import (
    MOST,
    Body,
    Name,
    TextOrTexts,
    Usage,
    check_finite,
    check_items,
    json_response,
    texts_of,
    usage_of,
    with_example,
)
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.json_route import model_router
from onnxpress.runtime.tasks.entities import Entity, Strategy

ROUTER = model_router("tag")


class TagRequest(Body):
    """Texts to find entities in."""

    input: TextOrTexts
    model: Name = None
    strategy: Strategy = Field(
        "simple",
        description="none: each token by itself. simple: neighbouring tokens of one label. first, average, max: all "
        "tokens of a word get one label first.",
    )
    ignore_labels: Annotated[list[str], Field(fail_fast=True)] = Field(["O"], description="Labels to leave out.")
    stride: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="Tokens that neighbouring windows of a long text share, at most half of a window.",
    )

    model_config = with_example({"input": "Ada Lovelace lived in London"})


class TagAnswer(BaseModel):
    """The entities of a text in its order; for a list of texts a list of them for each. `start` and `end` count
    characters (code points)."""

    model: str
    data: list[Entity] | list[list[Entity]]
    usage: Usage

    model_config = with_example(
        {
            "model": "ner",
            "data": [
                {
                    "label": "LOC",
                    "score": 0.99,
                    "word": "london",
                    "text": "London",
                    "start": 22,
                    "end": 28,
                    "index": None,
                }
            ],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    )


@ROUTER.post("/tag", response_model=TagAnswer, summary="Entities in texts")
async def tag(body: TagRequest, request: Request, service: TheService) -> Response:
    """Named entities, parts of speech: what the model labels tokens with. Long texts are read to their end, in windows
    that overlap."""
    served = service.models.find(body.model, "token-classification")
    texts = texts_of(body.input)
    check_items(len(texts), service.settings.limits, "input")
    # With more, windows would hold a text many times over.
    most = served.model.tokenizer.settings.max_length // 2
    if body.stride is not None and body.stride > most:
        message = f"stride is {body.stride}; at most {most} tokens, half of what {served.name!r} reads, may be shared"
        raise RequestError(400, message, param="stride", code="invalid_input")
    call = Call.of(request, service, served)
    await call.check_input(texts)
    found = await call.run.tag(
        texts,
        strategy=body.strategy,
        ignore_labels=body.ignore_labels,
        stride=body.stride,
        most_tokens=service.settings.limits.tokens,
    )
    check_finite([entity.score for entities in found for entity in entities])
    data = found if isinstance(body.input, list) else found[0]
    return json_response({"model": served.name, "data": data, "usage": usage_of(call.report.tokens)})
