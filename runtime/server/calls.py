"""One request on its way through a route: its model, what it took, and the checks that every route makes."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Self

from fastapi import Request

from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.faces import Asynchronous
from onnxpress.runtime.generation.requests import Request as GenerationRequest
from onnxpress.runtime.guards.watching import OutputWatch
from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.registry import ServedModel


@dataclasses.dataclass(frozen=True)
class AnswerReport:
    """What a request for text got, over all its answers: figures, never texts."""

    prompt_tokens: int
    """Each prompt once, however many answers it has."""
    reused_tokens: int
    """Of those, the ones that were in the cache already."""
    new_tokens: int
    finish_reason: str
    """Of the first answer: `stop`, `length`, `timeout`; `cancelled` where nobody waited for the end, `failed`."""
    first_token_seconds: float | None
    """From the beginning of the call until the first token was chosen; None where none was."""
    between_token_seconds: list[float]
    """Between each two tokens of an answer that follow each other."""

    @classmethod
    def of(cls, requests: Sequence[GenerationRequest], began: float, each: int = 1) -> Self:
        """
        Args:
            requests: of one call, at least one; they may have ended or not.
            began: the call, in seconds of `time.monotonic()`.
            each: answers to each prompt; those to one prompt follow each other.
        """
        firsts = [request.token_times[0] for request in requests if request.token_times]
        prompts = requests[::each]
        return cls(
            prompt_tokens=sum(len(request.prompt) for request in prompts),
            reused_tokens=sum(request.reused_tokens for request in prompts),
            new_tokens=sum(len(request.token_ids) for request in requests),
            finish_reason=_reason(requests[0]),
            first_token_seconds=min(firsts) - began if firsts else None,
            between_token_seconds=[
                later - time for request in requests for time, later in itertools.pairwise(tuple(request.token_times))
            ],
        )


def _reason(request: GenerationRequest) -> str:
    if not request.done:
        return "cancelled"
    try:
        return request.result(0).finish_reason
    # Whatever made it fail is told to the client elsewhere.
    except Exception:  # noqa: BLE001
        return "failed"


@dataclasses.dataclass
class Call:
    """Made by a route once it knows the model: `call = Call.of(request, service, served)`."""

    request: Request
    service: Service
    served: ServedModel
    report: CallReport = dataclasses.field(default_factory=CallReport)
    began: float = dataclasses.field(default_factory=time.monotonic)
    answer: AnswerReport | None = None
    """Of a call for text, once it has ended."""

    @classmethod
    def of(cls, request: Request, service: Service, served: ServedModel) -> Call:
        """The call, which whoever watches the request finds as `request.state.call`."""
        call = cls(request, service, served)
        request.state.call = call
        return call

    @property
    def run(self) -> Asynchronous:
        """The model's methods, within the time that a request may take; `report` gets what they took."""
        return self.served.runner.asynchronous.within(self.service.settings.limits.seconds, self.report)

    async def check_input(self, texts: Sequence[str]) -> None:
        """Let the guards look at what came in.

        Raises:
            BlockedError: one of them stops it.
            GuardError: one of them could not tell.
        """
        await self.service.guards.check_async(texts, "input", self.served.name)

    async def check_output(self, texts: Sequence[str]) -> None:
        """Let the guards look at text that the model wrote, before it leaves. Errors as of `check_input`."""
        await self.service.guards.check_async(texts, "output", self.served.name)

    def watch_output(self) -> OutputWatch:
        """For an answer that leaves while it is written; of several answers, one for each."""
        return self.service.guards.watch(self.served.name)
