"""`/rerank`, as text-embeddings-inference has it, and `/v1/rerank`, as Jina and Cohere have it: the same scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import (
    MOST,
    Body,
    Name,
    Texts,
    check_finite,
    check_items,
    json_response,
    with_example,
)
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.json_route import model_router

ROUTER = model_router("rerank")


class RerankRequest(Body):
    """A query, and texts that may answer it."""

    query: str
    texts: Texts
    raw_scores: bool = Field(False, description="The model's own numbers, not made into ones from 0 to 1 by a sigmoid.")
    return_text: bool = Field(False, description="Give the texts back, too.")
    truncate: bool | None = Field(
        None, description="false: query and text that are too long together are an error. Else the longer one is cut."
    )
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        "Right", description="Where texts that are too long are cut."
    )
    model: Name = None

    model_config = with_example({"query": "where is my order?", "texts": ["It was sent on Monday.", "We sell lamps."]})


class Rank(BaseModel):
    """A text and how well it answers the query."""

    index: int = Field(ge=0, description="Its place among the texts given.")
    score: float
    text: str | None = Field(None, description="Only with `return_text`.")

    model_config = with_example({"index": 0, "score": 0.98})


@ROUTER.post(
    "/rerank", response_model=list[Rank], response_model_exclude_none=True, summary="Texts in the order of a query"
)
async def rerank(body: RerankRequest, request: Request, service: TheService) -> Response:
    """As text-embeddings-inference has it: best first, of equal ones the earlier first."""
    _, ranked = await _rank(
        body, request, service, body.texts,
        function="identity" if body.raw_scores else "sigmoid",
        truncate=body.truncate is not False,
        side=body.truncation_direction.lower(),
    )  # fmt: skip
    texts = body.texts if body.return_text else None
    return json_response(
        [
            {"index": one.index, "score": one.score} | ({} if texts is None else {"text": texts[one.index]})
            for one in ranked
        ]
    )


class Document(Body):
    """A document as an object."""

    text: str


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(document)" if isinstance(value, dict) else None


TextOrDocument = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[Document, Tag("(document)")],
    Discriminator(_kind, "document", 'a string or {"text": ...}'),
]


class RerankDocumentsRequest(Body):
    """A query, and documents that may answer it."""

    query: str
    documents: Annotated[list[TextOrDocument], Field(min_length=1, fail_fast=True)]
    top_n: int | None = Field(None, ge=1, le=MOST, description="Give only so many, the best.")
    return_documents: bool = Field(False, description="Give the documents back, too.")
    model: Name = None

    model_config = with_example(
        {"query": "where is my order?", "documents": ["It was sent.", "We sell lamps."], "top_n": 1}
    )


class DocumentRank(BaseModel):
    """A document and how well it answers the query."""

    index: int = Field(ge=0, description="Its place among the documents given.")
    relevance_score: float = Field(description="From 0 to 1.")
    document: Document | None = Field(None, description="Only with `return_documents`.")


class TotalUsage(BaseModel):
    """Tokens that were read: of all pairs of query and document."""

    total_tokens: int


class DocumentRanks(BaseModel):
    """The documents, best first."""

    model: str
    results: list[DocumentRank]
    usage: TotalUsage

    model_config = with_example(
        {"model": "reranker", "results": [{"index": 0, "relevance_score": 0.98}], "usage": {"total_tokens": 29}}
    )


@ROUTER.post(
    "/v1/rerank",
    response_model=DocumentRanks,
    response_model_exclude_none=True,
    summary="Documents in the order of a query",
)
async def rerank_documents(body: RerankDocumentsRequest, request: Request, service: TheService) -> Response:
    """As Jina and Cohere have it; the scores are those of `/rerank`."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    call, ranked = await _rank(body, request, service, texts, function="sigmoid", top_k=body.top_n)
    results: list[dict[str, Any]] = [{"index": one.index, "relevance_score": one.score} for one in ranked]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    usage = {"total_tokens": call.report.tokens}
    return json_response({"model": call.served.name, "results": results, "usage": usage})


async def _rank(
    body: RerankRequest | RerankDocumentsRequest,
    request: Request,
    service: TheService,
    texts: list[str],
    **options: Any,
) -> tuple[Call, Any]:
    served = service.models.find(body.model, "text-ranking")
    check_items(len(texts), service.settings.limits, "texts" if isinstance(body, RerankRequest) else "documents")
    call = Call.of(request, service, served)
    await call.check_input([body.query, *texts])
    ranked = await call.run.rank(body.query, texts, **options)
    check_finite([one.score for one in ranked])
    return call, ranked
