"""What is counted and measured, for Prometheus (docs/metrics.md has each metric with its meaning).

Whoever knows something tells it: request_log.py of requests, the runners of their batches, guards of their decisions;
watching.py looks once a second at what can only be looked at. With one process the metrics live in it. Where
PROMETHEUS_MULTIPROC_DIR names an empty folder before prometheus_client is imported, every process writes what it counts
into files there, and `render` of any of them gives the sum over all. Whoever supervises the processes calls
`prometheus_client.multiprocess.mark_process_dead(pid)` for one that has ended: its gauges go, its counts stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from onnxpress.runtime.call_report import BatchReport, CallReport

if TYPE_CHECKING:
    from onnxpress.runtime.server.calls import AnswerReport
    from onnxpress.runtime.server.request_record import RequestRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# A second series for each counter, with the time it began: several processes do not have it, so neither has one.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What is counted of a model that a `BatchingRunner` gives its batches."""

    sequences: Counter
    tokens: Counter
    tokenize_seconds: Histogram
    wait_seconds: Histogram
    run_seconds: Histogram
    batch_sequences: Histogram
    batch_seconds: Histogram
    batch_tokens: Counter
    padding_tokens: Counter

    def batch(self, report: BatchReport) -> None:
        """A run of the graph has ended."""
        self.batch_sequences.observe(report.sequences)
        self.batch_seconds.observe(report.seconds)
        self.batch_tokens.inc(report.tokens)
        self.padding_tokens.inc(report.padded_tokens - report.tokens)

    def request(self, report: CallReport) -> None:
        """A request has ended whose texts became tokens."""
        self.tokenize_seconds.observe(report.tokenize_seconds)
        if report.run_seconds:  # else it was refused, or left the queue
            self.sequences.inc(report.sequences)
            self.tokens.inc(report.tokens)
            self.wait_seconds.observe(report.wait_seconds)
            self.run_seconds.observe(report.run_seconds)


@dataclasses.dataclass(frozen=True, slots=True)
class Writing:
    """What is counted of a model that writes."""

    tokens_in: Counter
    reused_tokens: Counter
    tokens_out: Counter
    first_token_seconds: Histogram
    between_tokens_seconds: Histogram

    def request(self, answer: AnswerReport) -> None:
        """An answer has ended, or was given up."""
        self.tokens_in.inc(answer.prompt_tokens)
        self.reused_tokens.inc(answer.reused_tokens)
        self.tokens_out.inc(answer.new_tokens)
        if answer.first_token_seconds is not None:
            self.first_token_seconds.observe(answer.first_token_seconds)
        for seconds in answer.between_token_seconds:
            self.between_tokens_seconds.observe(seconds)


class Metrics:
    """All of them, in a registry of their own: several applications in one process do not meet. (In several processes
    they would: there, a process has one application.) Safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._shared = values.ValueClass is not values.MutexValue  # prometheus_client decided that at its import
        self._reading: dict[str, Reading] = {}
        self._writing: dict[str, Writing] = {}
        self._guards: dict[tuple[str, str, bool], Counter] = {}
        self._requests: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        self._request_count = self._counter("requests", "Requests that were answered.", "route", "status", "model")
        self._request_seconds = self._histogram(
            "request_seconds", "From a request's head to the end of its answer.", _SECONDS, "route", "model"
        )
        self._refusals = self._counter("refusals", "Answers that are an error, by its code.", "reason")
        self._disconnects = self._counter("disconnects", "Clients that left before their answer was complete.", "route")
        self._guard_decisions = self._counter(
            "guard_decisions", "Texts that a guard looked at.", "guard", "place", "decision"
        )
        self._guard_failures = self._counter("guard_failures", "Decisions of guards that could not tell.", "guard")
        self.in_flight = self._gauge("requests_in_flight", "Requests that are being answered.")
        self.ready_workers = self._gauge("ready_workers", "Worker processes that take requests.")
        self.worker_start = self._gauge(
            "newest_worker_start_seconds", "When the youngest worker began, in seconds since 1970.", mode="livemax"
        )
        self.loop_delay = self._gauge(
            "event_loop_delay_seconds", "By which a worker's event loop came late to its last second.", mode="livemax"
        )
        self.memory = self._gauge("memory_bytes", "Physical memory of the worker processes, now and at most.", "kind")
        self.model_info = self._gauge(
            "model_info", "1 for each model.", "model", "task", "variant", "provider", "version", mode="livemax"
        )
        self.waiting = self._gauge("queue_waiting", "Sequences, or requests for text, that wait.", "model")
        self.most_waiting = self._gauge("queue_limit", "Of them, as many as may wait.", "model")
        self.running = self._gauge("running", "Graph runs in threads, or requests for text, at the moment.", "model")
        self.cache_rows = self._gauge("cache_rows", "Rows of the cache of keys and values.", "model", "state")
        self.cache_bytes = self._gauge("cache_bytes", "Memory of the cache of keys and values.", "model")
        self.decoding_steps = self._counter("decoding_steps", "Runs of the graph that chose tokens.", "model")
        self.chosen_tokens = self._counter("chosen_tokens", "Tokens chosen, also for answers given up.", "model")
        self.drafted_tokens = self._counter("drafted_tokens", "Tokens looked up and run on trial.", "model", "outcome")
        self._make_reading, self._make_writing = self._makers()

    def reading(self, name: str) -> Reading:
        """Those of a model that reads."""
        if name not in self._reading:
            self._reading[name] = self._make_reading(name)
        return self._reading[name]

    def writing(self, name: str) -> Writing:
        """Those of a model that writes."""
        if name not in self._writing:
            self._writing[name] = self._make_writing(name)
        return self._writing[name]

    def on_batch(self, name: str) -> Callable[[BatchReport], None]:
        """What the runner of a model is given to tell of its batches."""
        return lambda report: self.reading(name).batch(report)

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
        key = guard, place, blocked
        counter = self._guards.get(key)
        if counter is None:
            counter = self._guard_decisions.labels(guard, place, "blocked" if blocked else "passed")
            self._guards[key] = counter
        counter.inc()
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
        if record.model is None:
            return
        if record.report is not None and record.report.sequences:
            self.reading(record.model).request(record.report)
        if record.answer is not None:
            self.writing(record.model).request(record.answer)

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

    # Making them

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"onnxpress_{name}", meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, *labels: str, mode: Literal["livesum", "livemax"] = "livesum") -> Gauge:
        return Gauge(f"onnxpress_{name}", meaning, labels, registry=self._registry, multiprocess_mode=mode)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"onnxpress_{name}", meaning, labels, registry=self._registry, buckets=buckets)

    def _makers(self) -> tuple[Callable[[str], Reading], Callable[[str], Writing]]:
        def counter(name: str, meaning: str) -> Counter:
            return self._counter(name, meaning, "model")

        def histogram(name: str, meaning: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return self._histogram(name, meaning, buckets, "model")

        sequences = counter("sequences", "Texts, pairs, or windows of long texts, of requests that were run.")
        tokens_in = counter("tokens_in", "Tokens read, without padding.")
        reused_tokens = counter("reused_tokens", "Of the tokens read, those found in the cache.")
        tokens_out = counter("tokens_out", "Tokens of answers.")
        tokenize_seconds = histogram("tokenize_seconds", "Checking and tokenizing a request.", _SHORT_SECONDS)
        wait_seconds = histogram("wait_seconds", "From then until the first of its sequences ran.")
        run_seconds = histogram("run_seconds", "From then until the last was done.")
        batch_sequences = histogram("batch_sequences", "Sequences of a run of the graph.", _SEQUENCES)
        batch_seconds = histogram("batch_seconds", "A run of the graph.")
        batch_tokens = counter("batch_tokens", "Tokens that went through the graph, without padding.")
        padding_tokens = counter("padding_tokens", "Padding that went through the graph beside them.")
        first_token_seconds = histogram("first_token_seconds", "From a request to the first token of its answer.")
        between_tokens_seconds = histogram(
            "between_tokens_seconds", "From one token of an answer to the next.", _SHORT_SECONDS
        )

        def reading(name: str) -> Reading:
            return Reading(
                sequences=sequences.labels(name),
                tokens=tokens_in.labels(name),
                tokenize_seconds=tokenize_seconds.labels(name),
                wait_seconds=wait_seconds.labels(name),
                run_seconds=run_seconds.labels(name),
                batch_sequences=batch_sequences.labels(name),
                batch_seconds=batch_seconds.labels(name),
                batch_tokens=batch_tokens.labels(name),
                padding_tokens=padding_tokens.labels(name),
            )

        def writing(name: str) -> Writing:
            return Writing(
                tokens_in=tokens_in.labels(name),
                reused_tokens=reused_tokens.labels(name),
                tokens_out=tokens_out.labels(name),
                first_token_seconds=first_token_seconds.labels(name),
                between_tokens_seconds=between_tokens_seconds.labels(name),
            )

        return reading, writing
