"""What requests for text have in common: the fields of their bodies, and the generator's options that these become.

What the fields mean, and which are refused: docs/openai.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from onnxpress.runtime.generation import constraints
from onnxpress.runtime.generation.constraints import Grammar
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.generation.lookup import MOST_DRAFTED
from onnxpress.runtime.generation.options import Options
from onnxpress.runtime.server.bodies import Body
from onnxpress.runtime.server.errors import RequestError

MOST_ALTERNATIVES = 20
"""Likely tokens at each place of an answer, as in the OpenAI API."""
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
Penalty = Annotated[float, Field(ge=-100, le=100)]
_SEEDS = 1 << 64
# Of the generator; the OpenAI API allows less, which means the likeliest token as well.
_LEAST_TEMPERATURE = 1e-6
_LEAST_TOP_P = 1e-9
# Fields that other servers know and this one does not serve: why, for those who set them.
_REFUSED = {
    "logit_bias": "logits cannot be changed one by one; leave it out, or limit the answer with structured_outputs",
    "suffix": "text is written at the end only, not in the middle; leave suffix out",
}


class JsonSchema(Body):
    """A schema, as the OpenAI API names its parts."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    """Answers follow the schema in any case."""


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """The same and more, one of them; with the names that vLLM has."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    """A JSON schema."""
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """In llguidance's form of Lark."""


class StreamOptions(Body):
    """What a stream says besides text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """Accepted; nothing is added to events."""


class WritingRequest(Body):
    """Fields of both routes. What is not given is as the model's `generation_config.json` says."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10_000)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None

    # Not of the OpenAI API.
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_lookup: Annotated[int, Field(ge=0, le=MOST_DRAFTED)] | None = None

    @property
    def answers(self) -> int:
        """To each prompt."""
        return self.n or 1

    def options(self, logprobs: int | None, most_new: int | None = None) -> Options:
        """The generator's options.

        Args:
            logprobs: to give of each place of an answer; None for none at all.
            most_new: tokens of an answer; None for `max_tokens`.

        Raises:
            RequestError, InvalidInputError: a field cannot be served, or contradicts another.
        """
        for name, why in _REFUSED.items():
            if getattr(self, name, None):
                raise refused(name, why)
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                400, "stream_options are for streams; set stream, too", param="stream_options", code="invalid_input"
            )
        given: dict[str, Any] = {
            "max_new_tokens": most_new or self.max_tokens,
            "temperature": 0
            if self.temperature is not None and self.temperature < _LEAST_TEMPERATURE
            else self.temperature,
            "top_k": self.top_k,
            "top_p": None if self.top_p is None else max(self.top_p, _LEAST_TOP_P),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": None if self.seed is None else self.seed % _SEEDS,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": self.ignore_eos,
            "logprobs": logprobs,
            "n": self.n,
            "grammar": self._grammar(),
            "prompt_lookup": self.prompt_lookup,
        }
        options: Any = {name: value for name, value in given.items() if value is not None}
        return options  # type: ignore[no-any-return]

    def _grammar(self) -> Grammar | None:
        form, own = self.response_format, self.structured_outputs
        if own is not None:
            if form is not None and form.type != "text":
                raise RequestError(
                    400,
                    "response_format and structured_outputs exclude each other",
                    param="structured_outputs",
                    code="invalid_input",
                )
            return _structured(own)
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return constraints.json_object()
        if form.json_schema is None:
            raise RequestError(
                400,
                "response_format has the type json_schema and no json_schema",
                param="response_format.json_schema",
                code="invalid_input",
            )
        return constraints.json_schema(form.json_schema.schema_ or {})


class TokenDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int
    """Those whose keys and values were in the cache."""


class WritingUsage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


def check_context(tokens: int, generator: Generator, param: str) -> None:
    """
    Raises:
        RequestError: a prompt of so many tokens leaves no room for an answer.
    """
    context = generator.engine.context
    if tokens >= context:
        raise RequestError(
            400,
            f"the prompt has {tokens:,} tokens; the model's context is {context:,}, which must have room for the "
            "answer too; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )


def refused(param: str, why: str) -> RequestError:
    """A field that other servers know and this one does not serve."""
    return RequestError(400, f"{param} is not supported: {why}", param=param, code="unsupported_field")


def new_id(prefix: str) -> str:
    """The id of an answer."""
    return f"{prefix}-{uuid.uuid4().hex}"


def _structured(asked: StructuredOutputs) -> Grammar:
    makers: tuple[tuple[Any, Callable[[Any], Grammar]], ...] = (
        (asked.json_, constraints.json_schema),
        (asked.json_object or None, lambda _: constraints.json_object()),
        (asked.regex, constraints.regex),
        (asked.choice, constraints.choice),
        (asked.grammar, constraints.lark),
    )
    given = [(value, make) for value, make in makers if value is not None]
    if len(given) != 1:
        raise RequestError(
            400,
            f"structured_outputs has {len(given)} of json, json_object, regex, choice and grammar; give one",
            param="structured_outputs",
            code="invalid_input",
        )
    value, make = given[0]
    return make(value)
