"""What is known of a request once it has ended, for the log, the metrics and traces. Never a text of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from onnxpress.runtime.call_report import CallReport

if TYPE_CHECKING:
    from onnxpress.runtime.server.calls import AnswerReport, Call

CLIENT_GONE = 499
"""The status of a request that got no answer, for its client had left; nginx made it customary."""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that has ended, or whose client has left."""

    request_id: str
    method: str
    route: str | None
    """As it is declared, such as `/v1/models/{name}`; None where no route was reached."""
    status: int
    seconds: float
    """From its head to the end of the answer."""
    error: str | None = None
    """The code of the error it was answered with."""
    disconnected: bool = False
    """The client left before the answer was complete."""
    model: str | None = None
    task: str | None = None
    report: CallReport | None = None
    answer: AnswerReport | None = None
    started: float = 0.0
    """When its head was there, in seconds of `time.monotonic()`."""
    trace_id: str | None = None

    @classmethod
    def of(cls, state: dict[str, Any], method: str, route: str | None, **others: Any) -> RequestRecord:
        """
        Args:
            state: what middleware and routes have left in `request.state`.
            method: of HTTP.
            route: as it is declared.
            others: the remaining fields.
        """
        call: Call | None = state.get("call")
        if call is not None:
            others |= {
                "model": call.served.name,
                "task": call.served.task,
                "report": call.report,
                "answer": call.answer,
            }
        return cls(state["request_id"], method, route, **others)

    @property
    def tokens_in(self) -> int | None:
        """Tokens of its texts; None where they did not become tokens."""
        if self.answer is not None:
            return self.answer.prompt_tokens
        return self.report.tokens if self.report is not None and self.report.sequences else None

    def fields(self) -> dict[str, Any]:
        """For a line of the log: what there is of each, without what there is not. Seconds are rounded to 1e-6."""
        fields: dict[str, Any] = {"method": self.method, "route": self.route, "status": self.status}
        if self.model is not None:
            fields |= {"model": self.model, "task": self.task}
        report, answer = self.report, self.answer
        if report is not None and report.sequences:
            fields["sequences"] = report.sequences
        if self.tokens_in is not None:
            fields["tokens_in"] = self.tokens_in
        if answer is not None:
            fields |= {
                "reused_tokens": answer.reused_tokens,
                "tokens_out": answer.new_tokens,
                "finish_reason": answer.finish_reason,
            }
        fields["seconds"] = round(self.seconds, 6)
        if report is not None and report.sequences:
            fields["tokenize_seconds"] = round(report.tokenize_seconds, 6)
            if report.run_seconds:
                fields["wait_seconds"] = round(report.wait_seconds, 6)
                fields["run_seconds"] = round(report.run_seconds, 6)
        if answer is not None and answer.first_token_seconds is not None:
            fields["first_token_seconds"] = round(answer.first_token_seconds, 6)
        if self.error is not None:
            fields["error"] = self.error
        if self.disconnected:
            fields["disconnected"] = True
        if self.trace_id is not None:
            fields["trace_id"] = self.trace_id
        return fields
