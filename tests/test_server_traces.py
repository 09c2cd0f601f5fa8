"""runtime/server/traces.py: spans of requests, and their way to a collector."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server.calls import AnswerReport
from onnxpress.runtime.server.request_record import RequestRecord
from onnxpress.runtime.server.traces import Traces
from tests.gated_app import Lines, app, ask, client, embed, gated_app, lines
from tests.gated_graph import SECONDS, GatedGraph, graph

__all__ = ["app", "graph", "lines"]  # fixtures

ROOT = Path(__file__).parent.parent
SECRET = "c0nfidential"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of the W3C recommendation


@pytest.fixture
def spans(app: FastAPI) -> Iterator[InMemorySpanExporter]:
    """Spans of the application's requests."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app.state.service.traces = Traces(provider)
    yield exporter
    provider.shutdown()


def only(spans: InMemorySpanExporter, kind: trace.SpanKind = trace.SpanKind.SERVER) -> ReadableSpan:
    (span,) = (span for span in spans.get_finished_spans() if span.kind is kind)
    return span


def test_a_request_is_a_span_with_its_parts(app: FastAPI, spans: InMemorySpanExporter, lines: Lines) -> None:
    response = embed(app, ["w1 w2", "w3"])
    request = only(spans)
    parts = [span for span in spans.get_finished_spans() if span is not request]
    assert request.name == "POST /v1/embeddings"
    assert request.parent is None
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "gen_ai.request.model": "words",
        "gen_ai.usage.input_tokens": 3,
        "onnxpress.task": "feature-extraction",
        "onnxpress.sequences": 2,
        "onnxpress.request_id": response.headers["x-request-id"],
    }
    assert request.context is not None
    assert lines.requests[0]["trace_id"] == f"{request.context.trace_id:032x}"
    assert [part.name for part in parts] == ["tokenize", "wait", "run"]
    times = [request.start_time]
    for part in parts:
        assert part.parent is not None
        assert part.parent.span_id == request.context.span_id
        times += [part.start_time, part.end_time]
    times.append(request.end_time)
    assert times == sorted(times)  # type: ignore[type-var]


def test_a_clock_that_is_set_back_leaves_parts_inside(
    app: FastAPI, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(10**18, -(10**9))
    monkeypatch.setattr(time, "time_ns", lambda: next(now))
    monkeypatch.setattr("opentelemetry.sdk.trace.time_ns", lambda: next(now))
    embed(app, ["w1 w2"])
    request = only(spans)
    assert request.start_time is not None
    assert request.end_time is not None
    for part in spans.get_finished_spans():
        assert part.start_time is not None
        assert part.end_time is not None
        assert request.start_time <= part.start_time <= part.end_time <= request.end_time


def test_a_trace_that_has_begun_is_continued(app: FastAPI, spans: InMemorySpanExporter) -> None:
    embed(app, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
    request = only(spans)
    assert request.parent is not None
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert request.context.trace_state.get("vendor") == "1"


@pytest.mark.parametrize("parent", ["", "x", "00-0-0-01", PARENT.replace("-01", "-zz"), "é" * 300])
def test_a_parent_that_is_none_begins_a_trace(app: FastAPI, spans: InMemorySpanExporter, parent: str) -> None:
    assert embed(app, headers={"traceparent": parent.encode("latin-1")}).status_code == 200
    assert only(spans).parent is None


def test_spans_made_meanwhile_are_inside(app: FastAPI, spans: InMemorySpanExporter) -> None:
    @app.get("/works/{word}")
    async def works(word: str) -> None:
        with trace.get_tracer("test", tracer_provider=app.state.service.traces._provider).start_as_current_span(word):
            await asyncio.sleep(0)

    async def two() -> None:
        async with client(app) as asking:
            await asyncio.gather(asking.get("/works/a"), asking.get("/works/b"))

    asyncio.run(two())
    assert not trace.get_current_span().get_span_context().is_valid
    found = spans.get_finished_spans()
    requests = {span.context.span_id for span in found if span.kind is trace.SpanKind.SERVER and span.context}
    inner = {span.name: span.parent.span_id for span in found if span.name in ("a", "b") and span.parent}
    assert set(inner.values()) == requests
    assert len(requests) == 2


def test_errors_are_seen_and_texts_are_not(app: FastAPI, spans: InMemorySpanExporter, graph: GatedGraph) -> None:
    graph.fail_on = 3
    embed(app, f"w3 {SECRET}")
    failed = only(spans)
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "internal"
    spans.clear()
    ask(app, SECRET, f"/{SECRET}?q={SECRET}", headers={"Authorization": f"Bearer {SECRET}"}, content=SECRET)
    refused = only(spans)
    assert refused.name == "_OTHER"
    assert refused.status.status_code is trace.StatusCode.UNSET  # the client's fault, by the conventions
    assert SECRET not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_probes_are_no_spans(app: FastAPI, spans: InMemorySpanExporter) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        ask(app, "GET", path)
    assert not spans.get_finished_spans()


def test_the_first_token_is_an_event() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traced = Traces(provider).begin({"headers": []})
    answer = AnswerReport(40, 30, 4, "stop", 0.25, [0.01] * 3)
    record = RequestRecord("id", "POST", "/v1/completions", 200, 1.0, model="writer", answer=answer)
    traced.end(dataclasses.replace(record, started=time.monotonic()))
    span = only(exporter)
    assert span.attributes is not None
    assert span.start_time is not None
    assert [(event.name, event.timestamp - span.start_time) for event in span.events] == [("first token", 250_000_000)]
    assert span.attributes["gen_ai.usage.input_tokens"] == 40
    assert span.attributes["gen_ai.usage.output_tokens"] == 4
    assert span.attributes["onnxpress.reused_tokens"] == 30
    assert span.attributes["onnxpress.finish_reason"] == "stop"


def test_what_is_not_sampled_costs_no_parts(app: FastAPI) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app.state.service.traces = Traces(provider)
    assert embed(app).status_code == 200
    assert not exporter.get_finished_spans()


# The collector


class Collector(ThreadingHTTPServer):
    """Takes what is sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.taken: list[tuple[str, bytes]] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.thread.join(SECONDS)
        self.server_close()


class _Take(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.taken.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.mark.parametrize(("path", "posted"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/own/path", "/own/path")])
def test_spans_arrive_at_a_collector_when_the_server_ends(
    tmp_path: Path, graph: GatedGraph, collector: Collector, path: str, posted: str
) -> None:
    app = gated_app(tmp_path, graph, traces=collector.address + path)

    async def serve() -> None:
        async with app.router.lifespan_context(app), client(app) as asking:
            await asking.post("/v1/embeddings", json={"input": "w1"}, headers={"traceparent": PARENT})

    asyncio.run(serve())
    assert {place for place, _ in collector.taken} == {posted}
    sent = ExportTraceServiceRequest.FromString(collector.taken[0][1])
    (resource,) = sent.resource_spans
    about = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert about["service.name"] == "onnxpress"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {"POST /v1/embeddings", "tokenize", "wait", "run"}
    assert {span.trace_id.hex() for span in spans} == {PARENT.split("-")[1]}


def test_a_collector_that_is_away_holds_nobody_up(
    tmp_path: Path,
    graph: GatedGraph,
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    app = gated_app(tmp_path, graph, traces=collector.address)
    with caplog.at_level(logging.CRITICAL, logger="opentelemetry"):
        assert embed(app).status_code == 200
        app.state.service.traces.close()
    app.state.service.models.close()


@pytest.mark.parametrize("address", ["collector:4318", "", "ftp://collector", "http://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInputError, match="give the address of an OTLP collector"):
        Traces.open(address)


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'onnxpress\[traces\]'"):
        Traces.open("http://127.0.0.1:4318")


ALONE = """
import sys, tempfile
from pathlib import Path
from tests.gated_app import embed, gated_app
from tests.gated_graph import GatedGraph

app = gated_app(Path(tempfile.mkdtemp()), GatedGraph())
embed(app)
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
embed(app)
print(len(exporter.get_finished_spans()))
"""


def test_without_traces_nothing_is_imported_and_nobody_else_makes_spans() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "0"]
