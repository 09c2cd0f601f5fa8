"""`/v1/chat/completions`, as the OpenAI API has it: the answer to a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.server.answering import Asked, streamed, whole
from onnxpress.runtime.server.application import TheService
from onnxpress.runtime.server.bodies import Body, check_items
from onnxpress.runtime.server.calls import Call
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.logprobs import ChatLogprobs, PlacedLogprob, chat_logprobs
from onnxpress.runtime.server.registry import ServedModel
from onnxpress.runtime.server.sse import EVENTS
from onnxpress.runtime.server.writing import (
    MOST_ALTERNATIVES,
    WritingRequest,
    WritingUsage,
    check_context,
    new_id,
    refused,
)

ROUTER = APIRouter(tags=["text"])

# What the route itself says to the template.
_OWN_VARIABLES = ("template", "messages", "tools", "continue_final_message", "add_generation_prompt")
_NO_TOOLS = "this server calls no tools and reads no calls out of answers; leave it out"


class ContentPart(BaseModel):
    """A part of a message: `{"type": "text", "text": "..."}`."""

    model_config = ConfigDict(extra="allow")  # parts of other types have other fields; what is wrong is their type

    type: str
    text: str | None = None


class Message(Body):
    """What was said."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is `system` by another name."""
    content: str | list[ContentPart]
    name: str | None = None
    reasoning_content: str | None = None
    """What the assistant thought before, for templates that show it."""

    # Empty in answers that clients send back.
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = None
    function_call: None = None
    tool_calls: list[Any] | None = None


class ChatRequest(WritingRequest):
    """A conversation to answer."""

    messages: list[Message]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None

    # Accepted: they change nothing about an answer.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None

    # Not of the OpenAI API.
    continue_final_message: bool = False
    """Go on with the last message instead of answering it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """What else the model's template uses, such as `enable_thinking`."""


class ChatAnswer(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: WritingUsage


@ROUTER.post("/v1/chat/completions", response_model=ChatCompletion, responses={200: EVENTS})
async def chat(body: ChatRequest, request: Request, service: TheService) -> Response:
    """The answer to a conversation. With `stream` it comes as server-sent events."""
    check_items(len(body.messages), service.settings.limits, "messages")
    check_items(body.answers, service.settings.limits, "n")
    served = service.models.find(body.model, "text-generation")
    call = Call.of(request, service, served)
    options = body.options(_logprobs(body), body.max_completion_tokens)
    messages = _messages(body)
    await call.check_input(_to_check(messages))
    variables = _variables(body)
    try:
        prompt = await call.run.chat_prompt(
            messages, continue_final_message=body.continue_final_message, template_variables=variables
        )
    except InvalidBundleError as error:  # the template did not get through with these messages
        raise RequestError(400, str(error), param="messages", code="chat_template") from error
    check_context(len(prompt), served.generator, "messages")
    asked = Asked(call, [prompt], options, body.answers, _ChatForm(served))
    if body.stream:
        return streamed(asked, body.stream_options is not None and body.stream_options.include_usage)
    return await whole(asked)


def _logprobs(body: ChatRequest) -> int | None:
    _refuse_tools(body)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise RequestError(
            400,
            "max_tokens and max_completion_tokens differ; give one",
            param="max_completion_tokens",
            code="invalid_input",
        )
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RequestError(400, "top_logprobs needs logprobs; set it, too", param="top_logprobs", code="invalid_input")
    return None


def _refuse_tools(body: ChatRequest) -> None:
    for name in ("tools", "functions", "tool_choice", "function_call"):
        if getattr(body, name) not in (None, [], "none"):
            raise refused(name, _NO_TOOLS)
    for index, message in enumerate(body.messages):
        if message.tool_calls:
            raise refused(f"messages[{index}].tool_calls", _NO_TOOLS)


def _messages(body: ChatRequest) -> list[dict[str, Any]]:
    """As templates have them: each content one text."""
    messages = []
    for index, message in enumerate(body.messages):
        plain: dict[str, Any] = {
            "role": "system" if message.role == "developer" else message.role,
            "content": _text(message.content, f"messages[{index}].content"),
        }
        plain |= {} if message.name is None else {"name": message.name}
        plain |= {} if message.reasoning_content is None else {"reasoning_content": message.reasoning_content}
        messages.append(plain)
    return messages


def _text(content: str | list[ContentPart], param: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise refused(f"{param}[{index}]", f"its type is {part.type[:100]!r}, and models here read text only")
        texts.append(part.text)
    return "\n".join(texts)


def _to_check(messages: list[dict[str, Any]]) -> list[str]:
    """What guards look at: all that the model will read. What the assistant is said to have said, the client may have
    made up."""
    texts = [message.get(field) for message in messages for field in ("content", "name", "reasoning_content")]
    return [text for text in texts if text]


def _variables(body: ChatRequest) -> dict[str, Any]:
    variables = body.chat_template_kwargs or {}
    for name in _OWN_VARIABLES:
        if name in variables:
            raise refused(f"chat_template_kwargs.{name}", "the request has a field for that, or the server sets it")
    return variables


class _ChatForm:
    kind, kind_of_chunk = "chat.completion", "chat.completion.chunk"

    def __init__(self, served: ServedModel) -> None:
        self.id = new_id("chatcmpl")
        self._token_text = served.generator.preparing.detokenizer.token_text

    def choice(self, index: int, text: str, placed: list[PlacedLogprob] | None, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(placed), "finish_reason": reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._part(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def part(self, index: int, text: str, placed: list[PlacedLogprob] | None, reason: str | None) -> dict[str, Any]:
        return self._part(index, {"content": text} if text or placed else {}, placed, reason)

    def _part(
        self, index: int, delta: dict[str, Any], placed: list[PlacedLogprob] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": self._logprobs(placed), "finish_reason": reason}

    def _logprobs(self, placed: list[PlacedLogprob] | None) -> dict[str, Any] | None:
        return None if placed is None else chat_logprobs(placed, self._token_text)
