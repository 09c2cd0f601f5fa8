"""One request on its way through a route: its model, what it took, and the checks that every route makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastapi import Request

from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.faces import Asynchronous
from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.registry import ServedModel


@dataclasses.dataclass(slots=True)
class AnswerReport:
    """What an answer of a model that writes took. Filled in while it is made, so that it says what there was where it
    is given up."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Of the prompt's tokens, those found in the cache."""
    new_tokens: int = 0
    finish_reason: str | None = None
    """None while it is made, and where it is given up."""
    first_token_seconds: float | None = None
    """From the request to its first token; None where nobody looked."""
    between_token_seconds: list[float] = dataclasses.field(default_factory=list)
    """From each token to the next."""


@dataclasses.dataclass
class Call:
    """Made by a route once it knows the model: `call = Call.of(request, service, served)`."""

    request: Request
    service: Service
    served: ServedModel
    report: CallReport = dataclasses.field(default_factory=CallReport)
    answer: AnswerReport | None = None
    """Of a model that writes."""

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
