"""What it costs to watch a request: its id, its line in the log, its metrics and its trace.

`python -m bench.observing [--requests N] [--rounds N]` sends requests through the middleware to an application that
only says what a route says of an embedding, and to that application alone. Figures are the difference in processor time
of this process, the best of the rounds, in microseconds for each request. Lines go to /dev/null, spans to an exporter
that drops them. `PROMETHEUS_MULTIPROC_DIR=EMPTY_FOLDER python -m bench.observing` measures a worker of several.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import values
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onnxpress.runtime.call_report import BatchReport, CallReport
from onnxpress.runtime.server.logs import configure_logs
from onnxpress.runtime.server.metrics import Metrics
from onnxpress.runtime.server.request_log import RequestLog
from onnxpress.runtime.server.traces import Traces

_SERVED = SimpleNamespace(name="minilm", task="feature-extraction")
_ROUTE = SimpleNamespace(path="/v1/embeddings")
_HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"user-agent", b"bench")]


class _Dropped(SpanExporter):
    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.observing", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=5000, help="of each round (default: 5000)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    metrics = Metrics()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Dropped()))
    logged = RequestLog(_route, _service(metrics, None))
    traced = RequestLog(_route, _service(metrics, Traces(provider)))
    found = {"processes": "several" if values.ValueClass is not values.MutexValue else "one"}
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stderr(nothing):
        alone = _per_request(_route, options)
        for name, app, level in (
            ("metrics_us", logged, "warning"),
            ("metrics_and_log_us", logged, "info"),
            ("metrics_log_and_trace_us", traced, "info"),
        ):
            configure_logs(level)
            found[name] = f"{_per_request(app, options) - alone:.1f}"
    provider.shutdown()
    batch = BatchReport(sequences=3, tokens=30, padded_tokens=40, seconds=0.01)
    on_batch = metrics.on_batch("minilm")
    found["batch_us"] = f"{_best(lambda: on_batch(batch), 2000, options.rounds):.1f}"
    found["render_us"] = f"{_best(metrics.render, 20, options.rounds):.0f}"
    print(json.dumps(found))
    return 0


async def _route(scope: Scope, receive: Receive, send: Send) -> None:
    """What a route leaves behind."""
    report = CallReport(time.monotonic(), 3, 30, 1e-4, 1e-3, 1e-3)
    scope.setdefault("state", {})["call"] = SimpleNamespace(served=_SERVED, report=report, answer=None)
    scope["route"] = _ROUTE
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


def _service(metrics: Metrics, traces: Traces | None) -> Any:
    return SimpleNamespace(metrics=metrics, traces=traces, phase="ready")


def _per_request(app: ASGIApp, options: argparse.Namespace) -> float:
    """Microseconds."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        pass

    async def requests() -> None:
        for _ in range(options.requests):
            scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": _HEADERS}
            await app(scope, receive, send)

    count: int = options.requests
    return _best(lambda: asyncio.run(requests()), 1, options.rounds) / count


def _best(work: Callable[[], object], times: int, rounds: int) -> float:
    """Microseconds of processor time."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(times):
            work()
        best = min(best, time.process_time() - began)
    return best / times * 1e6


if __name__ == "__main__":
    sys.exit(main())
