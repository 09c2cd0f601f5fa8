"""A span of OpenTelemetry for each request, with what it waited for inside it. Needs `onnxpress[traces]`.

A request that brings a W3C `traceparent` continues that trace. How many traces are kept, and what they say of the
process, is set by OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`). Spans have no text
of a request or an answer.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.types import Scope

import onnxpress
from onnxpress.runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from onnxpress.runtime.server.request_record import RequestRecord

_PATH = "/v1/traces"  # of collectors, where the address has none (OTLP specification, "OTLP/HTTP Request")
_HEADERS = {b"traceparent": "traceparent", b"tracestate": "tracestate"}


class Traces:
    """Makes spans and hands them to an exporter."""

    def __init__(self, provider: TracerProvider) -> None:
        """
        Args:
            provider: with the processors that spans go to; it is shut down with this.
        """
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("onnxpress", onnxpress.__version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def open(cls, address: str) -> Traces:
        """
        Args:
            address: of a collector that speaks OTLP over HTTP, such as `http://127.0.0.1:4318`.

        Raises:
            InvalidInputError: it is no such address, or OpenTelemetry is not installed.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidInputError(
                f"traces go to {address!r}; give the address of an OTLP collector, http://HOST:4318"
            )
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidInputError("traces need OpenTelemetry: pip install 'onnxpress[traces]'") from error
        name = os.environ.get("OTEL_SERVICE_NAME", "onnxpress")
        resource = Resource.create({"service.name": name, "service.version": onnxpress.__version__})
        provider = TracerProvider(resource=resource)
        path = "" if parts.path.strip("/") else _PATH
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address.rstrip("/") + path)))
        return cls(provider)

    def begin(self, scope: Scope) -> TracedRequest:
        """A request has come; spans made while it is answered are parts of its own."""
        from opentelemetry import context, trace

        carrier = {_HEADERS[key]: value.decode("latin-1") for key, value in scope["headers"] if key in _HEADERS}
        parent = self._propagator.extract(carrier, context.Context())
        began, start_ns = time.monotonic(), time.time_ns()
        span = self._tracer.start_span("request", parent, kind=trace.SpanKind.SERVER, start_time=start_ns)
        return TracedRequest(self, span, began, start_ns)

    def add_part(self, whole: Span, name: str, start_ns: int, end_ns: int) -> None:
        """A span of what has ended already, inside another."""
        from opentelemetry import trace

        part = self._tracer.start_span(name, trace.set_span_in_context(whole), start_time=start_ns)
        part.end(end_ns)

    def close(self) -> None:
        """Send what is left. Where nobody listens it gives up after 10 seconds, or OTEL_EXPORTER_OTLP_TIMEOUT."""
        self._provider.shutdown()


class TracedRequest:
    """A request whose span is open, in the task that answers it.

    Its times are those of one clock, `time.monotonic()`: the system's time may be set or slowed while it is answered,
    and parts would then lie outside the whole.
    """

    def __init__(self, traces: Traces, span: Span, began: float, start_ns: int) -> None:
        """
        Args:
            traces: that it belongs to.
            span: which began just now.
            began: that moment, in seconds of `time.monotonic()`.
            start_ns: the same moment, in nanoseconds of `time.time_ns()`.
        """
        from opentelemetry import context, trace

        self._traces = traces
        self._span = span
        self._began = began
        self._start_ns = start_ns
        self._token = context.attach(trace.set_span_in_context(span))

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def end(self, record: RequestRecord) -> None:
        """It has ended."""
        from opentelemetry import context

        context.detach(self._token)
        if self._span.is_recording():
            self._describe(record)
        self._span.end(self._at(record.started + record.seconds))

    def _at(self, moment: float) -> int:
        """Nanoseconds since the epoch of a moment in seconds of `time.monotonic()`."""
        return self._start_ns + _ns(moment - self._began)

    def _describe(self, record: RequestRecord) -> None:
        from opentelemetry.trace import StatusCode

        span = self._span
        method = "_OTHER" if record.method == "other" else record.method  # as the semantic conventions have it
        span.update_name(f"{method} {record.route}" if record.route else method)
        span.set_attributes({key: value for key, value in _attributes(record, method).items() if value is not None})
        if record.status >= 500:
            span.set_status(StatusCode.ERROR)
        report, answer = record.report, record.answer
        if report is not None and report.sequences:
            at = self._at(report.started)
            parts = [("tokenize", report.tokenize_seconds)]
            if report.run_seconds:
                parts += [("wait", report.wait_seconds), ("run", report.run_seconds)]
            for name, seconds in parts:
                self._traces.add_part(span, name, at, at + _ns(seconds))
                at += _ns(seconds)
        if answer is not None and answer.first_token_seconds is not None:
            span.add_event("first token", timestamp=self._start_ns + _ns(answer.first_token_seconds))


def _attributes(record: RequestRecord, method: str) -> dict[str, str | int | bool | None]:
    """By OpenTelemetry's semantic conventions for HTTP and generative models where they have a name for it."""
    read = record.report is not None and bool(record.report.sequences)
    return {
        "http.request.method": method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.tokens_in,
        "gen_ai.usage.output_tokens": None if record.answer is None else record.answer.new_tokens,
        "onnxpress.task": record.task,
        "onnxpress.sequences": record.report.sequences if read and record.report is not None else None,
        "onnxpress.reused_tokens": None if record.answer is None else record.answer.reused_tokens,
        "onnxpress.finish_reason": None if record.answer is None else record.answer.finish_reason,
        "onnxpress.request_id": record.request_id,
        "onnxpress.disconnected": record.disconnected or None,
    }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
