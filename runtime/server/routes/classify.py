"""`/classify` and `/zero-shot`: labels of texts."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import (
    MOST,
    Body,
    Name,
    TextOrTexts,
    Texts,
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
from onnxpress.runtime.tasks.classification import HYPOTHESIS, Classification

ROUTER = model_router("classify")


class Pair(Body):
    """Two texts that are read together, such as a premise and a hypothesis."""

    text: str
    text_pair: str


def _kind_of_item(value: Any) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(pair)" if isinstance(value, dict) else None


def _kind(value: Any) -> str | None:
    return "(list)" if isinstance(value, list) else _kind_of_item(value)


_ITEM = 'a string or {"text": ..., "text_pair": ...}'
_Text = Annotated[str, Tag("(text)")]
_Pair = Annotated[Pair, Tag("(pair)")]
Item = Annotated[_Text | _Pair, Discriminator(_kind_of_item, "text_or_pair", _ITEM)]
Items = Annotated[list[Item], Field(min_length=1, fail_fast=True)]
Input = Annotated[
    _Text | _Pair | Annotated[Items, Tag("(list)")],
    Discriminator(_kind, "classify_input", f"{_ITEM}, or a list of them"),
]


class ClassifyRequest(Body):
    """Texts, or pairs of texts, to classify."""

    input: Input = Field(description="A text, a pair of texts, or a list of either, which gets a list of results.")
    model: Name = None
    top_k: int | None = Field(None, ge=1, le=MOST, description="Scores of only so many labels, the best.")

    model_config = with_example({"input": ["a fine film", "never again"], "top_k": 1})


class ClassifyAnswer(BaseModel):
    """A result, or a list of them in the order of the texts."""

    model: str
    data: Classification | list[Classification]
    usage: Usage

    model_config = with_example(
        {
            "model": "sst2",
            "data": [{"label": "positive", "score": 0.99, "scores": {"positive": 0.99}}],
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        }
    )


@ROUTER.post("/classify", response_model=ClassifyAnswer, summary="Labels of texts")
async def classify(body: ClassifyRequest, request: Request, service: TheService) -> Response:
    """The best label of each text, its score, and the scores of all, best first: probabilities that sum to 1, or one
    for each label of a model whose labels do not exclude each other."""
    served = service.models.find(body.model, "text-classification", "zero-shot-classification")
    many = isinstance(body.input, list)
    items = body.input if isinstance(body.input, list) else [body.input]
    check_items(len(items), service.settings.limits, "input")
    call = Call.of(request, service, served)
    texts = [item if isinstance(item, str) else (item.text, item.text_pair) for item in items]
    await call.check_input([text for item in texts for text in ([item] if isinstance(item, str) else item)])
    return _answer(call, await call.run.classify(texts), many, body.top_k)


class ZeroShotRequest(Body):
    """Texts to classify by labels that the model was not trained for."""

    input: TextOrTexts
    labels: Texts = Field(description="What to choose from.")
    model: Name = None
    multi_label: bool = Field(False, description="Several labels may be right: each is scored by itself.")
    hypothesis: str = Field(
        HYPOTHESIS, description="The sentence a label is put into, at its one `{}`: does the text entail it?"
    )
    top_k: int | None = Field(None, ge=1, le=MOST, description="Scores of only so many labels, the best.")

    model_config = with_example(
        {"input": "the parcel never came", "labels": ["delivery", "payment"], "multi_label": True}
    )


@ROUTER.post("/zero-shot", response_model=ClassifyAnswer, summary="Labels of your own for texts")
async def zero_shot(body: ZeroShotRequest, request: Request, service: TheService) -> Response:
    """Labels that the model was not trained for, by a model for natural language inference: the scores of all labels,
    best first. Each text is read once for each label."""
    served = service.models.find(body.model, "zero-shot-classification", "text-classification")
    limits = service.settings.limits
    texts = texts_of(body.input)
    check_items(len(texts), limits, "input")
    check_items(len(body.labels), limits, "labels")
    if (pairs := len(texts) * len(body.labels)) > limits.waiting:
        raise RequestError(
            400,
            f"{len(texts):,} texts with {len(body.labels):,} labels are {pairs:,} pairs; at most {limits.waiting:,} "
            "fit one request",
            param="labels",
            code="too_many_items",
        )
    call = Call.of(request, service, served)
    await call.check_input([*texts, *body.labels, body.hypothesis])
    found = await call.run.zero_shot(texts, body.labels, hypothesis=body.hypothesis, multi_label=body.multi_label)
    return _answer(call, found, isinstance(body.input, list), body.top_k)


def _answer(call: Call, found: list[Classification], many: bool, top_k: int | None) -> Response:
    check_finite([one.score for one in found])
    if top_k is not None:
        found = [dataclasses.replace(one, scores=dict(islice(one.scores.items(), top_k))) for one in found]
    usage = usage_of(call.report.tokens)
    return json_response({"model": call.served.name, "data": found if many else found[0], "usage": usage})
