"""Runs what a request for text asks for and gives its answers, whole or as a stream. How they look is the routes'
affair (routes/chat.py, routes/completions.py)."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Protocol

from fastapi import Response

from onnxpress.runtime.errors import ClosedError
from onnxpress.runtime.generation.options import Options
from onnxpress.runtime.generation.requests import Delta, Generation
from onnxpress.runtime.generation.streams import AsyncStreams
from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.bodies import json_response
from onnxpress.runtime.server.calls import AnswerReport, Call
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.logprobs import PlacedLogprob, PlacedLogprobs
from onnxpress.runtime.server.sse import DONE, EventStream, event


class Form(Protocol):
    """How the answers of a route look."""

    kind: str
    """`object` of a whole answer."""
    kind_of_chunk: str
    """`object` of a part of one that is streamed."""
    id: str

    def choice(self, index: int, text: str, placed: list[PlacedLogprob] | None, reason: str) -> dict[str, Any]:
        """A whole answer.

        Args:
            index: of the answer.
            text: of it.
            placed: its tokens, where they were asked for.
            reason: of its end.
        """

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream has of an answer before its first text, if anything."""

    def part(self, index: int, text: str, placed: list[PlacedLogprob] | None, reason: str | None) -> dict[str, Any]:
        """A part of an answer that is streamed; `reason` at its end."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a route has made of a request."""

    call: Call
    prompts: list[list[int]]
    options: Options
    each: int
    """Answers to each prompt."""
    form: Form

    def head(self, kind: str) -> dict[str, Any]:
        """What stands in every answer and every chunk."""
        served = self.call.served
        bundle = served.generator.bundle
        return {
            "id": self.form.id,
            "object": kind,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"{served.generator.variant.name}-{bundle.manifest_sha256[:12]}".rstrip("-"),
        }

    def usage(self, answers: Sequence[Generation]) -> dict[str, Any]:
        """As `WritingUsage`: each prompt counts once."""
        firsts = answers[:: self.each]
        read = sum(answer.prompt_tokens for answer in firsts)
        written = sum(len(answer.token_ids) for answer in answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(answer.reused_tokens for answer in firsts)},
        }

    def placed(self) -> PlacedLogprobs | None:
        """For the tokens of an answer, where they were asked for."""
        if self.options.get("logprobs") is None:
            return None
        return PlacedLogprobs(self.call.served.generator.preparing.detokenizer.token_text)

    @contextlib.asynccontextmanager
    async def streams(self, deltas: bool) -> AsyncGenerator[AsyncStreams]:
        """The answers, with a report for whoever watches the call."""
        call = self.call
        async with call.run.open_streams(self.prompts, deltas=deltas, since=call.began, **self.options) as streams:
            try:
                yield streams
            finally:
                call.answer = AnswerReport.of(streams.requests, call.began, self.each)


async def whole(asked: Asked) -> Response:
    """All answers, once they are there."""
    async with asked.streams(deltas=False) as streams:
        answers = await streams.results()
    for answer in answers:
        _check_end(answer)
    await asked.call.check_output([answer.text for answer in answers])
    choices = []
    for index, answer in enumerate(answers):
        placed = asked.placed()
        rest = None
        if placed is not None:
            for logprob in answer.logprobs or ():
                placed.add(logprob)
            rest = placed.rest(len(answer.text), answer.finish_reason == "stop")
        choices.append(asked.form.choice(index, answer.text, rest, answer.finish_reason))
    head = asked.head(asked.form.kind)
    return json_response({**head, "choices": choices, "usage": asked.usage(answers)})


def streamed(asked: Asked, include_usage: bool) -> EventStream:
    """The answers while they are made.

    Args:
        asked: for them.
        include_usage: end with the tokens that were read and written.
    """
    return EventStream(_events(asked, include_usage))


async def _events(asked: Asked, include_usage: bool) -> AsyncGenerator[bytes]:
    head = asked.head(asked.form.kind_of_chunk)
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    with _one_stream(asked.call.service):
        async with asked.streams(deltas=True) as streams:
            answers = [_StreamedAnswer(asked, index) for index in range(len(streams.requests))]
            try:
                while items := await streams.ready():
                    for index, item in items:
                        answers[index].add(item)
                    # What has come together leaves together: an event for each answer, in one write.
                    chunks = [chunk for index in dict(items) for chunk in await answers[index].chunks()]
                    if chunks:
                        yield b"".join([event({**head, "choices": [chunk], **usage}) for chunk in chunks])
            finally:
                for answer in answers:
                    answer.close()
        ended = [answer.end for answer in answers if answer.end is not None]
        last = event({**head, "choices": [], "usage": asked.usage(ended)}) if include_usage else b""
        yield last + DONE


class _StreamedAnswer:
    """One answer on its way to the client."""

    def __init__(self, asked: Asked, index: int) -> None:
        self._form = asked.form
        self._index = index
        self._watch = asked.call.watch_output()
        self._placed = asked.placed()
        self._opened = False
        self._new = ""  # text that has not been given out
        self._shown = 0  # characters that have
        self.end: Generation | None = None

    def add(self, item: Delta | Generation) -> None:
        """What a token has added, or the end."""
        if isinstance(item, Generation):
            self.end = item
            return
        self._new += item.text
        if self._placed is not None and item.logprob is not None:
            self._placed.add(item.logprob)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._watch.close()

    async def chunks(self) -> list[dict[str, Any]]:
        """What may leave now.

        Raises:
            BlockedError: a guard stops the text.
            ClosedError: the server ended the answer.
        """
        new, self._new = self._new, ""
        text = await self._watch.feed(new)
        if self.end is not None:
            _check_end(self.end)
            text += await self._watch.finish()
        self._shown += len(text)
        chunks = []
        if not self._opened:
            self._opened = True
            opening = self._form.opening(self._index)
            chunks += [] if opening is None else [opening]
        placed = None if self._placed is None else self._placed.take(self._shown)
        if text or placed:
            chunks.append(self._form.part(self._index, text, placed, None))
        if self.end is not None:
            reason = self.end.finish_reason
            left = None if self._placed is None else self._placed.rest(len(self.end.text), reason == "stop")
            chunks.append(self._form.part(self._index, "", left or None, reason))
        return chunks


def _check_end(answer: Generation) -> None:
    """
    Raises:
        ClosedError: the server ended the answer, for the client has not.
    """
    if answer.finish_reason == "cancelled":
        raise ClosedError("the server is ending and has cut this answer off; ask again")


@contextlib.contextmanager
def _one_stream(service: Service) -> Iterator[None]:
    """Be one of the streams.

    Raises:
        RequestError: there are as many as allowed.
    """
    most = service.settings.limits.streams
    if service.streams >= most:
        raise RequestError(
            429,
            f"{most} answers are being streamed, which is the limit; try again later",
            kind="rate_limit_error",
            code="too_many_streams",
            retry_after=1,
        )
    service.streams += 1
    try:
        yield
    finally:
        service.streams -= 1
