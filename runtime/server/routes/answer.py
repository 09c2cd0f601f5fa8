"""`/answer`: pieces of a text that answer a question."""

from __future__ import annotations

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
from onnxpress.runtime.server.json_route import model_router
from onnxpress.runtime.tasks.spans import Answer

ROUTER = model_router("answer")

MOST_ANSWERS = 100
MOST_ANSWER_TOKENS = 200


class AnswerRequest(Body):
    """Questions, and the texts that hold their answers."""

    question: TextOrTexts
    context: TextOrTexts = Field(description="The text to search; of several questions one for each, or one for all.")
    model: Name = None
    top_k: int | None = Field(
        None, ge=1, le=MOST_ANSWERS, description="With a number each question gets a list of at most so many answers."
    )
    max_answer_tokens: int = Field(
        15, ge=1, le=MOST_ANSWER_TOKENS, description="How long an answer may be, before it is widened to words."
    )
    stride: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="Tokens that neighbouring windows of a long context share; 128 at most unless given.",
    )
    window_tokens: int | None = Field(
        None, ge=1, le=MOST, description="Tokens read at once, question included; 384 at most unless given."
    )
    allow_no_answer: bool = Field(False, description='"There is no answer" competes: an empty text, start and end 0.')
    align_to_words: bool = Field(
        True, description="Widen answers to words. For scripts without spaces between words false is mostly better."
    )

    model_config = with_example(
        {"question": "When was it sent?", "context": "Your order was sent on Monday, by train."}
    )


class AnswerAnswer(BaseModel):
    """The best answer of a question, or with `top_k` a list of them, best first; for a list of questions a list of
    either. `start` and `end` count characters (code points) of the context."""

    model: str
    data: Answer | list[Answer] | list[list[Answer]]
    usage: Usage

    model_config = with_example(
        {
            "model": "reader",
            "data": {"text": "Monday", "score": 0.93, "start": 23, "end": 29, "no_answer_score": 0.001},
            "usage": {"prompt_tokens": 19, "total_tokens": 19},
        }
    )


@ROUTER.post("/answer", response_model=AnswerAnswer, summary="Answers that stand in a text")
async def answer(body: AnswerRequest, request: Request, service: TheService) -> Response:
    """Extractive question answering: it marks answers, it does not write any. Long contexts are read to their end, in
    windows that overlap."""
    served = service.models.find(body.model, "question-answering")
    limits = service.settings.limits
    questions, contexts = texts_of(body.question), texts_of(body.context)
    check_items(len(questions), limits, "question")
    check_items(len(contexts), limits, "context")
    call = Call.of(request, service, served)
    await call.check_input([*questions, *contexts])
    found = await call.run.answer(
        body.question,
        body.context,
        top_k=body.top_k,
        max_answer_tokens=body.max_answer_tokens,
        stride=body.stride,
        window_tokens=body.window_tokens,
        allow_no_answer=body.allow_no_answer,
        align_to_words=body.align_to_words,
        most_tokens=limits.tokens,
    )
    check_finite([one.score for one in _flat(found)])
    return json_response({"model": served.name, "data": found, "usage": usage_of(call.report.tokens)})


def _flat(found: Answer | list[Answer] | list[list[Answer]]) -> list[Answer]:
    return [found] if isinstance(found, Answer) else [one for part in found for one in _flat(part)]
