"""`/v1/completions`, as the OpenAI API has it: text that continues a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from onnxpress.runtime.server.answering import Asked, streamed, whole
from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import check_items
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.logprobs import CompletionLogprobs, PlacedLogprob, completion_logprobs
from onnxpress.runtime.server.registry import ServedModel
from onnxpress.runtime.server.sse import EVENTS
from onnxpress.runtime.server.writing import (
    MOST_ALTERNATIVES,
    TokenId,
    WritingRequest,
    WritingUsage,
    check_context,
    new_id,
    refused,
)

ROUTER = APIRouter(tags=["text"])


class CompletionRequest(WritingRequest):
    """Texts to continue."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    """A text, token ids, or several of them."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answers: `n` to the first prompt, `n` to the second."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: WritingUsage


@ROUTER.post("/v1/completions", response_model=Completion, responses={200: EVENTS})
async def complete(body: CompletionRequest, request: Request, service: TheService) -> Response:
    """Text that continues a text. With `stream` it comes as server-sent events."""
    prompts: Any = body.prompt
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    check_items(len(prompts) * body.answers, service.settings.limits, "prompt")
    served = service.models.find(body.model, "text-generation")
    call = Call.of(request, service, served)
    _check_fields(body)
    options = body.options(body.logprobs)
    encoded = await call.run.encode(prompts)
    for ids in encoded:
        check_context(len(ids), served.generator, "prompt")
    texts = [prompt if isinstance(prompt, str) else served.generator.decode(prompt) for prompt in prompts]
    await call.check_input(texts)
    form = _CompletionForm(served, texts if body.echo else [""] * len(texts), body.answers, body.logprobs)
    asked = Asked(call, encoded, options, body.answers, form)
    if body.stream:
        return streamed(asked, body.stream_options is not None and body.stream_options.include_usage)
    return await whole(asked)


def _check_fields(body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of != body.answers:
        raise refused("best_of", "all answers that are made are given; leave it out, or give the same as n")
    if body.echo and body.logprobs is not None:
        raise refused("echo", "the prompt's own log probabilities are not computed; leave out echo or logprobs")


class _CompletionForm:
    kind = kind_of_chunk = "text_completion"

    def __init__(self, served: ServedModel, echoes: Sequence[str], each: int, logprobs: int | None) -> None:
        self.id = new_id("cmpl")
        self._token_text = served.generator.preparing.detokenizer.token_text
        self._echoes = echoes  # what stands before the answers to each prompt
        self._each = each
        self._with_top = bool(logprobs)

    def choice(self, index: int, text: str, placed: list[PlacedLogprob] | None, reason: str) -> dict[str, Any]:
        return self.part(index, self._echo(index) + text, placed, reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        echo = self._echo(index)
        return self.part(index, echo, None, None) if echo else None

    def part(self, index: int, text: str, placed: list[PlacedLogprob] | None, reason: str | None) -> dict[str, Any]:
        logprobs = None if placed is None else completion_logprobs(placed, self._token_text, self._with_top)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._each]
