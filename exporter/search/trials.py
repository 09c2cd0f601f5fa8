"""Makes mixtures of precisions and measures them: on the examples to search with, and for the chosen one on those held
out. Everything that was measured is kept in the step cache, so that a search that was cut short, or is repeated with
another limit, goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxpress.exporter import bundling
from onnxpress.exporter.config import Thresholds
from onnxpress.exporter.search.feeds import Feeds, outputs_of, sample_feeds, timed_cases
from onnxpress.exporter.search.limits import Budget, Limit
from onnxpress.exporter.search.moves import Assignment, Ladder, make_ladder
from onnxpress.exporter.search.plan import OutOfTimeError, Trial
from onnxpress.exporter.search.splits import Splits
from onnxpress.exporter.state import Graph, State, VariantState
from onnxpress.quantize.graphs import PassReport
from onnxpress.quantize.mixed import FLOAT32, MixedConfig, mix_precisions
from onnxpress.quantize.sensitivity import Divergence, Sensitivity, measure_sensitivity
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.evaluation import Evaluation, Scores, evaluate, paired_interval
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.measuring import Worker, variant_command
from onnxpress.runtime.model import load
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import check_parity
from onnxpress.runtime.verifying import run_of

TRIAL, TRIAL_FLOAT32 = "trial", "trial-fp32"
"""The folders of the bundle that trials are written into, one after the other, and float32 to compare them with."""
_TIMING_SECONDS = 1.5
_SPREAD_OF_TIMES = 0.05  # of times as short as these, taken in turn
_SPREAD = {"size": 0.0, "memory": 0.02}
_SENSITIVITY_SHARE = 0.3
"""Of the budget that is left, what sensitivities may take."""
_FLOAT32: Assignment = {}

Write = Callable[[Path, Sequence[Feeds]], PassReport]
"""Writes a quantized graph, given where and real inputs."""


class TrialBench:
    """Trials of one export (plan.py: `Bench`).

    Args:
        state: after the step that converts.
        parts: quantized graphs by precision.
        splits: of the evaluation.
        limit: what must hold.
        budget: of time.
    """

    def __init__(self, state: State, parts: Mapping[str, Path], splits: Splits, limit: Limit, budget: Budget) -> None:
        assert state.fused is not None
        self.trials: list[Trial] = []
        self.spread = _SPREAD.get(state.config.objective, _SPREAD_OF_TIMES)
        self.sensitivities: list[Sensitivity] = []
        self.verdicts: list[dict[str, Any]] = []
        """What was found on the held-out examples, in the order they were looked at."""
        self._state, self._splits, self._limit, self._budget = state, splits, limit, budget
        self.parts = dict(parts)
        """All that is mixed with, also what was made here."""
        self._base = state.fused
        self._known: dict[tuple[tuple[str, str], ...], Trial] = {}
        self._scores: dict[str, Scores] = {}
        self._feeds: Sequence[Feeds] | None = None
        self._expected: list[Sequence[Any]] = []
        self._ladder: Ladder | None = None
        self._float32: dict[str, Any] | None = None
        self._written: Assignment | None = None

    @property
    def float32(self) -> dict[str, Any]:
        """What is known of the graph in float32.

        Raises:
            OutOfTimeError: it was not measured, and no time is left.
        """
        if self._float32 is None:
            self._float32 = self._figures(_FLOAT32, FLOAT32)
        return self._float32

    def add_part(
        self, name: str, depends_on: Any, write: Callable[[Path, Sequence[Feeds]], PassReport]
    ) -> Graph | None:
        """Make a further quantized graph to mix with; None where it cannot be made of this one, or no time is left.

        Args:
            name: of the precision.
            depends_on: JSON data on what it depends beside the float32 graph and the examples.
            write: writes it, given the path and real inputs.
        """

        def make(folder: Path) -> dict[str, Any]:
            self._budget.check()
            self._progress(f"making {name}")
            return {"report": dataclasses.asdict(write(folder / "model.onnx", self._samples()))}

        try:
            key = self._key(_FLOAT32) | {"depends_on": depends_on}
            folder, data, _ = self._state.cache.get(f"search-{name}", key, make)
        except (OutOfTimeError, UnsupportedModelError):
            return None
        passes = (*self._base.passes, decode(PassReport, data["report"]))
        graph = Graph(folder / "model.onnx", self._base.session, passes)
        self.parts[name] = graph.path
        return graph

    def measure(self, assignment: Assignment, name: str | None = None) -> Trial:
        """See `plan.Bench`."""
        key = tuple(sorted(assignment.items()))
        if key not in self._known:
            mixtures = sum(trial.name.startswith("mixed ") for trial in self.trials)
            name = name or f"mixed {mixtures + 1}"
            trial = self._trial(name, assignment, self._figures(assignment, name))
            self._known[key] = trial
            self.trials.append(trial)
        return self._known[key]

    def ladder(self) -> Ladder:
        """See `plan.Bench`."""
        if self._ladder is None:
            measured = self.measure_sensitivities()
            by_size = self._state.config.objective in ("size", "memory")
            times = {trial.name: trial.figures["milliseconds_ratio"] for trial in self.trials}
            self._ladder = make_ladder(measured, None if by_size else times)
        return self._ladder

    def measure_sensitivities(self) -> list[Sensitivity]:
        """Of each part.

        Raises:
            OutOfTimeError: they are not known, and no time is left.
        """
        share = _SENSITIVITY_SHARE / len(self.parts)
        if len(self.sensitivities) < len(self.parts):
            self.sensitivities = [self._sensitivity(precision, share) for precision in self.parts]
        return self.sensitivities

    def accepts(self, trial: Trial) -> bool:
        """See `plan.Bench`."""
        self._progress(f"{trial.name}: on the examples held out")

        def make(folder: Path) -> dict[str, Any]:
            graph = self._write(trial.assignment)
            return {
                name: self._compared(name, self._evaluate(graph, evaluation), evaluation)
                for name, evaluation in (("search", self._splits.search), ("held_out", self._splits.held_out))
            }

        _, data, _ = self._state.cache.get("held-out", self._key(trial.assignment), make)
        held_out = data["held_out"]
        holds = self._limit.holds(self._splits.held_out, held_out["float32"], held_out["metric"])
        self.verdicts.append(data | {"trial": trial.name, "holds": holds})
        return holds

    def _failure(self, assignment: Assignment) -> str | None:
        """What the gate says against a mixture."""

        def make(folder: Path) -> dict[str, Any]:
            return {"failure": self._gate(self._write(assignment))}

        thresholds = dataclasses.asdict(self._state.config.thresholds or Thresholds())
        _, data, _ = self._state.cache.get("trial-gate", self._key(assignment) | {"thresholds": thresholds}, make)
        failure: str | None = data["failure"]
        return failure

    def _trial(self, name: str, assignment: Assignment, figures: Mapping[str, Any]) -> Trial:
        before, after = self.float32["metric"], figures["metric"]
        evaluation = self._splits.search
        by = {"size": "size_bytes", "memory": "peak_memory_bytes"}.get(self._state.config.objective)
        cost = figures["milliseconds_ratio"] if by is None else figures[by] / self.float32[by]
        divergence = float("inf") if figures["divergence"] is None else figures["divergence"]
        holds = self._limit.holds(evaluation, before, float("nan") if after is None else after)
        failure = self._failure(assignment) if holds else None  # what has lost too much need not be looked at further
        return Trial(
            name, dict(assignment), cost, divergence, holds and failure is None, {**figures, "failure": failure}
        )

    def _figures(self, assignment: Assignment, name: str) -> dict[str, Any]:
        """What is known of a mixture, from the cache where it was measured before.

        Raises:
            OutOfTimeError: it was not, and no time is left.
        """

        def make(folder: Path) -> dict[str, Any]:
            self._budget.check()
            self._progress(name)
            graph = self._write(assignment)
            times = self._time(graph)
            scores = self._evaluate(graph, self._splits.search)
            by_memory = self._state.config.objective == "memory"
            return {
                "metric": finite(scores.primary),
                "divergence": finite(self._divergence(graph)) if assignment else 0.0,
                "milliseconds": times[1],
                "milliseconds_ratio": times[1] / times[0] if assignment else 1.0,
                "size_bytes": bundling.variant_size_bytes(self._state, TRIAL),
                "peak_memory_bytes": self._peak_memory() if by_memory else None,
            }

        objective = {"memory": "memory", "latency": "latency"}.get(self._state.config.objective, "")
        _, data, _ = self._state.cache.get("trial", self._key(assignment) | {"objective": objective}, make)
        return data

    def _key(self, assignment: Assignment) -> dict[str, Any]:
        """All that what is found out about a mixture depends on."""
        root, used = self._state.cache.root, set(assignment.values())
        return {
            "base": str(self._base.path.relative_to(root)),
            "session": dataclasses.asdict(self._base.session),
            "parts": {name: str(self.parts[name].relative_to(root)) for name in sorted(used & set(self.parts))},
            "assignment": sorted(assignment.items()),
            "evaluation": self._splits.search.sha256,
            "machine": (describe_machine().key(), self._state.threads),
        }

    def _write(self, assignment: Assignment) -> Graph:
        """The mixture in the folder of trials, where it may be already."""
        place = self._state.folder / TRIAL
        if self._written != assignment:
            bundling.remove_variant(self._state, TRIAL)
            place.mkdir()
            mix_precisions(self._base.path, self.parts, MixedConfig(assignment), place / "model.onnx")
            self._written = dict(assignment)
        return Graph(place / "model.onnx", self._base.session, ())

    def _float32_graph(self) -> Graph:
        """The float32 graph in a folder of its own, since it is needed beside the mixture being measured."""
        graph = Graph(self._state.folder / TRIAL_FLOAT32 / "model.onnx", self._base.session, self._base.passes)
        if not graph.path.exists():
            bundling.install_graph(self._state, TRIAL_FLOAT32, self._base)
        return graph

    def _load(self, graph: Graph) -> Any:
        """A graph in a folder of the bundle as what serves it."""
        variant = VariantState(graph.path.parent.name, TRIAL, self._state.config.target, graph)
        bundling.write_manifest(dataclasses.replace(self._state, variants=(variant,), default=variant.name))
        return load(self._state.folder, threads=self._state.threads)

    def _evaluate(self, graph: Graph, evaluation: Evaluation) -> Scores:
        model = self._load(graph)
        try:
            return evaluate(model, evaluation)
        finally:
            model.close()

    def finish(self) -> None:
        """Measure the sensitivity to the cheapest graph for the report, where the search did without and has time."""
        uniform = [trial for trial in self.trials if trial.name in self.parts]
        if not self.sensitivities and uniform:
            cheapest = min(uniform, key=lambda trial: trial.cost)
            with contextlib.suppress(OutOfTimeError, KeyboardInterrupt):
                self.sensitivities = [self._sensitivity(cheapest.name, _SENSITIVITY_SHARE)]

    def clear(self) -> None:
        """Remove what was written into the folder of the bundle."""
        for name in (TRIAL, TRIAL_FLOAT32):
            bundling.remove_variant(self._state, name)

    def _float32_scores(self, name: str, evaluation: Evaluation) -> Scores:
        if name not in self._scores:
            self._scores[name] = self._evaluate(self._float32_graph(), evaluation)
        return self._scores[name]

    def _compared(self, name: str, after: Scores, evaluation: Evaluation) -> dict[str, Any]:
        """Both figures of a part of the evaluation, and the interval of their difference."""
        before = self._float32_scores(name, evaluation)
        interval = paired_interval(evaluation, before, after)
        return {
            "samples": len(evaluation.examples),
            "float32": finite(before.primary),
            "metric": finite(after.primary),
            "drop": finite(evaluation.loss(before.primary, after.primary) + 0.0),  # no minus before zero
            "interval": [interval.low, interval.high] if interval.finite else None,
        }

    def _gate(self, graph: Graph) -> str | None:
        """What the gate would say against the mixture."""
        state = self._state
        assert state.facts is not None
        kind, threshold = (state.config.thresholds or Thresholds()).for_precision("mixed", state.task)
        session = make_session(graph.path, graph.session, settings=ServingSettings(state.threads))
        run, compared = run_of(session, state.facts.settings, state.facts.outputs)
        return check_parity(run, state.cases, compared, kind, threshold).failure(state.source.reference)

    def _time(self, graph: Graph) -> list[float]:
        """Milliseconds of float32 and of the mixture, in turn."""
        from onnxpress.exporter.fusion import time_forms

        graphs = [(self._base.path, self._base.session), (graph.path, graph.session)]
        return time_forms(graphs, timed_cases(self._state), _TIMING_SECONDS)

    def _peak_memory(self) -> int | None:
        """Of a process that serves the mixture, which lies in the folder of trials."""
        worker = Worker(TRIAL, variant_command(self._state.folder, TRIAL, self._state.threads))
        try:
            peak: int | None = worker.ask(do="memory")
            return peak
        finally:
            worker.close()

    def _divergence(self, graph: Graph) -> float:
        outputs = outputs_of(self._state)
        names = [output.name for output in outputs]
        feeds = self._samples()
        if not self._expected:
            base = make_session(self._base.path, self._base.session, settings=ServingSettings(self._state.threads))
            self._expected = [base.run(names, dict(feed)) for feed in feeds]
        session = make_session(graph.path, graph.session, settings=ServingSettings(self._state.threads))
        divergence = Divergence(outputs)
        for feed, expected in zip(feeds, self._expected, strict=True):
            divergence.add(feed, expected, session.run(names, dict(feed)))
        return divergence.value

    def _samples(self) -> Sequence[Feeds]:
        """Inputs made of the examples to search with."""
        if self._feeds is None:
            self._feeds = sample_feeds(self._state, self._splits.search)
        return self._feeds

    def _sensitivity(self, precision: str, share: float) -> Sensitivity:
        def make(folder: Path) -> dict[str, Any]:
            self._budget.check()
            found = measure_sensitivity(
                self._base.path,
                self.parts[precision],
                precision,
                self._samples(),
                outputs_of(self._state),
                settings=self._base.session,
                threads=self._state.threads,
                seconds=share * self._budget.left,
                progress=lambda done, total: self._progress(f"sensitivity to {precision}: {done} of {total} nodes"),
            )
            return dataclasses.asdict(found)

        key = self._key({"": precision})
        _, data, _ = self._state.cache.get("sensitivity", key, make)
        return decode(Sensitivity, data, finite=False)  # infinite where a node makes what is no number

    def _progress(self, detail: str) -> None:
        fraction = min(0.99, self._budget.spent / self._budget.seconds) if self._budget.seconds else None
        self._state.progress("search", detail, fraction)


def finite(value: float) -> float | None:
    """A number for the report, which has no others."""
    return value if float("-inf") < value < float("inf") else None
