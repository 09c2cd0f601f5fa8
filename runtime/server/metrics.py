"""What is counted and measured, for Prometheus (docs/metrics.md has each metric with its meaning).

Whoever knows something tells it: request_log.py of requests, the runners of their batches, guards of their decisions;
watching.py looks once a second at what can only be looked at. With one process the metrics live in it. Where
PROMETHEUS_MULTIPROC_DIR names an empty folder before prometheus_client is imported, every process writes what it counts
into files there, and `render` of any of them gives the sum over all. Whoever supervises the processes calls
`prometheus_client.multiprocess.mark_process_dead(pid)` for one that has ended: its gauges go, its counts stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from onnxpress.runtime.call_report import BatchReport
from onnxpress.runtime.server.model_metrics import Answers, Batches, Calls, Making

if TYPE_CHECKING:
    from onnxpress.runtime.server.request_record import RequestRecord

# A second series for each counter, with the time it began: several processes do not have it, so neither has one.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All of them, in a registry of their own: several applications in one process do not meet. (In several processes
    they would: there, a process has one application.) Safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._shared = values.ValueClass is not values.MutexValue  # prometheus_client decided that at its import
        make = Making(self._registry)
        self.calls = Calls.family(make)
        self.batches = Batches.family(make)
        self.answers = Answers.family(make)
        self._requests: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        self._request_count = make.counter("requests", "Requests that have ended.", "route", "status", "model")
        self._request_seconds = make.histogram(
            "request_seconds", "From a request's head to the end of its answer.", "route", "model"
        )
        self._refusals = make.counter("refusals", "Answers that are an error, by its code.", "reason")
        self._disconnects = make.counter("disconnects", "Clients that left before their answer was complete.", "route")
        self._guard_decisions = make.counter(
            "guard_decisions", "Texts that a guard looked at.", "guard", "place", "decision"
        )
        self._guard_failures = make.counter("guard_failures", "Decisions of guards that could not tell.", "guard")
        self.in_flight = make.gauge("requests_in_flight", "Requests that are being answered.")
        self._make_gauges(make)

    def _make_gauges(self, make: Making) -> None:
        """For watching.py, which sets them."""
        self.ready_workers = make.gauge("ready_workers", "Worker processes that take requests.")
        self.worker_start = make.gauge(
            "newest_worker_start_seconds", "When the youngest worker began, in seconds since 1970.", mode="livemax"
        )
        self.loop_delay = make.gauge(
            "event_loop_delay_seconds", "By which a worker's event loop came late to its last second.", mode="livemax"
        )
        self.memory = make.gauge("memory_bytes", "Physical memory of the worker processes, now and at most.", "kind")
        self.model_info = make.gauge(
            "model_info", "1 for each model.", "model", "task", "variant", "provider", "version", mode="livemax"
        )
        self.waiting = make.gauge("queue_waiting", "Sequences, or requests for text, that wait.", "model")
        self.most_waiting = make.gauge("queue_limit", "Of them, as many as may wait.", "model")
        self.running = make.gauge("running", "Graph runs in threads, or requests for text, at the moment.", "model")
        self.cache_rows = make.gauge("cache_rows", "Rows of the cache of keys and values.", "model", "state")
        self.cache_bytes = make.gauge("cache_bytes", "Memory of the cache of keys and values.", "model")
        self.decoding_steps = make.counter("decoding_steps", "Runs of the graph that chose tokens.", "model")
        self.chosen_tokens = make.counter("chosen_tokens", "Tokens chosen, also for answers given up.", "model")
        self.drafted_tokens = make.counter("drafted_tokens", "Tokens looked up and run on trial.", "model", "outcome")

    def on_batch(self, name: str) -> Callable[[BatchReport], None]:
        """What the runner of a model is given to tell of its batches. Of a model that writes there are none."""
        return lambda report: self.batches(name).run(report)

    def refused(self, code: str) -> None:
        """A request was answered with an error of this code, or its stream ended with one."""
        self._refusals.labels(code).inc()

    def guard_decision(self, guard: str, place: str, blocked: bool, *, failed: bool = False) -> None:
        """A guard has looked at a text.

        Args:
            guard: its name.
            place: `input` or `output`.
            blocked: whether it was stopped.
            failed: whether the guard could not tell.
        """
        self._guard_decisions.labels(guard, place, "blocked" if blocked else "passed").inc()
        if failed:
            self._guard_failures.labels(guard).inc()

    def request(self, record: RequestRecord) -> None:
        """A request has ended."""
        route, model = record.route or "none", record.model or "none"
        key = route, record.status, model
        found = self._requests.get(key)
        if found is None:
            count = self._request_count.labels(route, str(record.status), model)
            found = self._requests[key] = count, self._request_seconds.labels(route, model)
        found[0].inc()
        found[1].observe(record.seconds)
        if record.error is not None:
            self.refused(record.error)
        if record.disconnected:
            self._disconnects.labels(route).inc()
        if record.report is not None:
            self.calls(model).request(record)
        if record.answer is not None:
            self.answers(model).request(record)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its media type.

        Args:
            accept: the header of whoever asks, which decides between Prometheus's formats.
        """
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type
