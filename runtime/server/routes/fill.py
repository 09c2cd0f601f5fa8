"""`/fill`: words for the gaps of texts."""

from __future__ import annotations

from fastapi import Request, Response
from pydantic import BaseModel, Field

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import (
    Body,
    Name,
    TextOrTexts,
    Texts,
    Usage,
    check_items,
    json_response,
    texts_of,
    usage_of,
    with_example,
)
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.json_route import model_router
from onnxpress.runtime.server.settings import Limits
from onnxpress.runtime.tasks.filling import Filling

ROUTER = model_router("fill")

MOST_PROPOSALS = 4096
"""Of a request: each is the whole text once more, and a gap's scores are as many as the vocabulary."""


class FillRequest(Body):
    """Texts with gaps."""

    input: TextOrTexts = Field(description="With at least one of the model's mask token (see `/v1/models`) each.")
    model: Name = None
    top_k: int = Field(5, ge=1, le=MOST_PROPOSALS, description="Proposals for a gap.")
    targets: Texts | None = Field(None, description="Propose only these tokens.")

    model_config = with_example({"input": "The order was [MASK] yesterday.", "top_k": 2})


class FillAnswer(BaseModel):
    """The proposals for a text, best first; of a text with several gaps a list for each, every one filled as if by
    itself. For a list of texts a list of either."""

    model: str
    data: list[Filling] | list[list[Filling]] | list[list[Filling] | list[list[Filling]]]
    usage: Usage

    model_config = with_example(
        {
            "model": "bert",
            "data": [{"token": "sent", "token_id": 2741, "score": 0.41, "text": "the order was sent yesterday."}],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    )


@ROUTER.post("/fill", response_model=FillAnswer, summary="Words for the gaps of texts")
async def fill(body: FillRequest, request: Request, service: TheService) -> Response:
    """Proposals of a masked language model, with their probabilities among all tokens."""
    served = service.models.find(body.model, "fill-mask")
    texts = texts_of(body.input)
    check_items(len(texts), service.settings.limits, "input")
    _check_gaps(sum(text.count(served.model.mask_token) for text in texts), body.top_k, service.settings.limits)
    call = Call.of(request, service, served)
    await call.check_input([*texts, *(body.targets or [])])
    found = await call.run.fill(body.input, top_k=body.top_k, targets=body.targets)
    return json_response({"model": served.name, "data": found, "usage": usage_of(call.report.tokens)})


def _check_gaps(gaps: int, top_k: int, limits: Limits) -> None:
    if gaps > limits.items or gaps * top_k > MOST_PROPOSALS:
        raise RequestError(
            400,
            f"input has {gaps:,} gaps with {top_k:,} proposals each; at most {limits.items:,} gaps and "
            f"{MOST_PROPOSALS:,} proposals fit one request",
            param="input",
            code="too_many_items",
        )
