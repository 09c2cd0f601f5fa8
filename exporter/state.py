"""What is known at a point of the pipeline. Steps return a changed copy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.exporter.calibration import Calibration
from onnxpress.exporter.config import ExportConfig, ProgressHook
from onnxpress.exporter.source import Source
from onnxpress.exporter.stepcache import StepCache
from onnxpress.quantize.graphs import PassReport
from onnxpress.runtime.evaluation import Evaluation, Interval, Scores
from onnxpress.runtime.manifest import SessionSettings, TaskSettings, Tensor
from onnxpress.runtime.measuring import Measurement
from onnxpress.runtime.verification import Case, Parity

if TYPE_CHECKING:
    from onnxpress.exporter.reference import Reference

TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What the bundle and the report say about the model; plain data, so that a later export need not load PyTorch."""

    architecture: str
    parameters: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    settings: TaskSettings
    weights_bytes: int
    notes: tuple[str, ...] = ()
    """Sentences about what a bundle does otherwise than the model's own files say."""


@dataclasses.dataclass(frozen=True)
class Graph:
    """An ONNX file in the step cache, how to open it, and how it came about."""

    path: Path
    session: SessionSettings
    passes: tuple[PassReport, ...]
    candidates: tuple[dict[str, Any], ...] = ()
    """Forms that were timed against each other: name, milliseconds, chosen (see docs/bundle.md)."""


@dataclasses.dataclass(frozen=True)
class VariantState:
    """One variant on its way into the bundle, or out of it."""

    name: str
    precision: str
    target: str
    graph: Graph
    alternatives: tuple[Graph, ...] = ()
    """Other graphs of the same precision, to try in this order when `graph` does not pass."""
    status: str = "passed"
    failure: str | None = None
    parity: Parity | None = None
    first_divergence: dict[str, Any] | None = None
    accuracy: float | None = None
    """The evaluation's primary figure, in points."""
    accuracy_interval: Interval | None = None
    """Its difference from the reference's."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """All its figures."""
    changed_answers: int | None = None
    """Evaluation examples that the reference answers otherwise; None: not counted for this task."""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class State:
    """Everything the steps read and make."""

    config: ExportConfig
    source: Source
    task: str
    evaluation: Evaluation | None
    calibration: Calibration | None
    folder: Path
    """The staging folder that becomes the bundle."""
    cache: StepCache
    threads: int
    progress: ProgressHook
    verbose: bool
    created: str
    searches: bool = False
    """Whether the accuracy was asked for, so that a graph is searched that holds it."""
    cached: bool = True
    """Whether the running step has found everything in the cache so far."""
    timings: tuple[dict[str, Any], ...] = ()
    facts: ModelFacts | None = None
    loaded: Reference | None = None
    """Only until the graph is there; its copy of the weights is then given back."""
    cases: tuple[Case, ...] = ()
    traced: Path | None = None
    fused: Graph | None = None
    variants: tuple[VariantState, ...] = ()
    search: dict[str, Any] | None = None
    """What the search tried and found: a key of the report, like the next one."""
    sensitivity: dict[str, Any] | None = None
    rejected: frozenset[str] = frozenset()
    """Variants that did not hold the accuracy in the search."""
    baseline_scores: Scores | None = None
    measurements: dict[str, Measurement] = dataclasses.field(default_factory=dict)
    workload_facts: dict[str, Any] | None = None
    default: str | None = None
    default_reason: str = ""
    report: dict[str, Any] | None = None
