"""One request on its way through a route: its model, what it took, and the checks that every route makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastapi import Request

from onnxpress.runtime.call_report import CallReport
from onnxpress.runtime.faces import Asynchronous
from onnxpress.runtime.server.application import Service
from onnxpress.runtime.server.registry import ServedModel


@dataclasses.dataclass
class Call:
    """Made by a route once it knows the model: `call = Call.of(request, service, served)`."""

    service: Service
    served: ServedModel
    report: CallReport = dataclasses.field(default_factory=CallReport)

    @classmethod
    def of(cls, request: Request, service: Service, served: ServedModel) -> Call:
        """The call, which whoever watches the request finds as `request.state.call`."""
        # It does not hold the request, which holds it: what refers to each other in a circle stays until it is found.
        call = cls(service, served)
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
