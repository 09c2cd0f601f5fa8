"""What is counted of each model: of its calls, of its batches, of the answers it writes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from onnxpress.runtime.call_report import BatchReport

if TYPE_CHECKING:
    from onnxpress.runtime.server.request_record import RequestRecord

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Buckets of what a request may take."""
SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Making:
    """Makes metrics whose names begin with `onnxpress_`."""

    registry: CollectorRegistry

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """A count; `_total` is added to its name."""
        return Counter(f"onnxpress_{name}", meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str, mode: Literal["livesum", "livemax"] = "livesum") -> Gauge:
        """A figure that goes up and down. `mode`: what several processes have together."""
        return Gauge(f"onnxpress_{name}", meaning, labels, registry=self.registry, multiprocess_mode=mode)

    def histogram(self, name: str, meaning: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        """How many were at most so large."""
        return Histogram(f"onnxpress_{name}", meaning, labels, registry=self.registry, buckets=buckets)


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """Of any model: what its requests brought and how long they took."""

    sequences: Counter
    tokens_in: Counter
    tokenize_seconds: Histogram
    wait_seconds: Histogram
    run_seconds: Histogram

    @classmethod
    def family(cls, make: Making) -> Callable[[str], Calls]:
        """Those of a model, by its name."""
        sequences = make.counter("sequences", "Texts, pairs, windows of long texts, or prompts that were run.", "model")
        tokens_in = make.counter("tokens_in", "Tokens of texts and prompts that were read.", "model")
        tokenize_seconds = make.histogram(
            "tokenize_seconds", "Checking and tokenizing a request.", "model", buckets=SHORT_SECONDS
        )
        wait_seconds = make.histogram("wait_seconds", "From then until the first of its sequences ran.", "model")
        run_seconds = make.histogram("run_seconds", "From then until the last was done.", "model")

        def of(model: str) -> Calls:
            return cls(
                sequences.labels(model),
                tokens_in.labels(model),
                tokenize_seconds.labels(model),
                wait_seconds.labels(model),
                run_seconds.labels(model),
            )

        return functools.cache(of)

    def request(self, record: RequestRecord) -> None:
        """A request has ended."""
        report = record.report
        if report is None or not report.sequences:
            return
        self.tokenize_seconds.observe(report.tokenize_seconds)
        if report.run_seconds:  # else it was refused, or left the queue
            self.sequences.inc(report.sequences)
            self.tokens_in.inc(record.tokens_in or 0)
            self.wait_seconds.observe(report.wait_seconds)
            self.run_seconds.observe(report.run_seconds)


@dataclasses.dataclass(frozen=True, slots=True)
class Batches:
    """Of a model that reads: runs of its graph."""

    sequences: Histogram
    seconds: Histogram
    tokens: Counter
    padding: Counter

    @classmethod
    def family(cls, make: Making) -> Callable[[str], Batches]:
        """Those of a model, by its name."""
        sequences = make.histogram("batch_sequences", "Sequences of a run of the graph.", "model", buckets=_SEQUENCES)
        seconds = make.histogram("batch_seconds", "A run of the graph.", "model")
        tokens = make.counter("batch_tokens", "Tokens that went through the graph, without padding.", "model")
        padding = make.counter("padding_tokens", "Padding that went through the graph beside them.", "model")

        def of(model: str) -> Batches:
            return cls(sequences.labels(model), seconds.labels(model), tokens.labels(model), padding.labels(model))

        return functools.cache(of)

    def run(self, report: BatchReport) -> None:
        """A run has ended."""
        self.sequences.observe(report.sequences)
        self.seconds.observe(report.seconds)
        self.tokens.inc(report.tokens)
        self.padding.inc(report.padded_tokens - report.tokens)


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """Of a model that writes."""

    tokens_out: Counter
    reused_tokens: Counter
    first_token_seconds: Histogram
    between_tokens_seconds: Histogram

    @classmethod
    def family(cls, make: Making) -> Callable[[str], Answers]:
        """Those of a model, by its name."""
        tokens_out = make.counter("tokens_out", "Tokens of answers.", "model")
        reused_tokens = make.counter("reused_tokens", "Of the tokens read, those found in the cache.", "model")
        first = make.histogram("first_token_seconds", "From a request to the first token of its answer.", "model")
        between = make.histogram(
            "between_tokens_seconds", "From one token of an answer to the next.", "model", buckets=SHORT_SECONDS
        )

        def of(model: str) -> Answers:
            return cls(
                tokens_out.labels(model), reused_tokens.labels(model), first.labels(model), between.labels(model)
            )

        return functools.cache(of)

    def request(self, record: RequestRecord) -> None:
        """An answer has ended, or was given up."""
        answer = record.answer
        if answer is None:
            return
        self.tokens_out.inc(answer.new_tokens)
        self.reused_tokens.inc(answer.reused_tokens)
        if answer.first_token_seconds is not None:
            self.first_token_seconds.observe(answer.first_token_seconds)
        for seconds in answer.between_token_seconds:
            self.between_tokens_seconds.observe(seconds)
