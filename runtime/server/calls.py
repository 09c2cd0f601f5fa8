"""One request on its way through a route: its model, what it took, and the checks that every route makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastapi import Request

from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.faces import Asynchronous
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


@dataclasses.dataclass
class Call:
    """Made by a route once it knows the model: `call = Call.of(request, service, served)`."""

    request: Request
    service: Service
    served: ServedModel
    report: CallReport = dataclasses.field(default_factory=CallReport)
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
        """

    async def check_output(self, texts: Sequence[str]) -> None:
        """Let the guards look at text that the model wrote, before it leaves.

        Raises:
            BlockedError: one of them stops it.
        """
