"""The comparison itself: ask every side, measure them in turn, and say how each differs from the first, the base."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnxpress
from onnxpress.runtime.comparing.differences import DIVERGENCE, Difference, Said, Written, compare_answers
from onnxpress.runtime.comparing.questions import NEW_TOKENS, own_examples, prompts_for, read_examples
from onnxpress.runtime.comparing.rules import Outcome, Rule, apply_rules, check_decidable
from onnxpress.runtime.comparing.sides import Side, check_sides
from onnxpress.runtime.data.options import DataOptions
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import TASKS, Evaluation, paired_interval
from onnxpress.runtime.machine import describe_machine, usable_cores, versions
from onnxpress.runtime.measuring import FULL, QUICK, Measurement, best_rate, measure
from onnxpress.runtime.settings import require_threads
from onnxpress.runtime.timed_texts import make_workload

SCHEMA_VERSION = 1
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and how thoroughly."""

    evaluation: tuple[Path, ...] = ()
    """Labelled examples; none: this project's own texts, of which only agreement can be had."""
    data: DataOptions = DataOptions()
    """How these are read."""
    measure: Literal["none", "quick", "full"] = "quick"
    threads: int | None = None
    """CPU threads of every side; None: the cores this process may use."""
    examples: int = 10
    """Changed answers that are kept of each side."""
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if self.measure not in ("none", "quick", "full"):
            raise InvalidInputError(f"measure is {self.measure!r}; give quick, full or none")
        require_threads(self.threads)
        if self.examples < 0:
            raise InvalidInputError(f"examples is {self.examples}; give a number of at least 0")


def compare(sides: Sequence[Side], options: Options, progress: Progress = lambda detail: None) -> dict[str, Any]:
    """Compare models with the first of them.

    Args:
        sides: at least two, for the same task and with the same labels.
        options: what to compare.
        progress: told what is being done.

    Returns:
        JSON data (docs/comparing.md).

    Raises:
        InvalidInputError: the sides cannot be compared, a file cannot be used, or a rule cannot be decided.
        InvalidBundleError: a bundle is broken.
    """
    sides = check_sides(sides)
    base = sides[0]
    labelled = bool(options.evaluation)
    evaluation = read_examples(options.evaluation, base, options.data) if labelled else own_examples(base)
    check_decidable(list(options.rules), options.measure != "none", evaluation.metric if labelled else None)
    threads = options.threads or usable_cores()
    said = []
    for side in sides:
        progress(f"asking {side.name}")
        said.append(_ask(side, evaluation, labelled, threads))
    measurements, facts = _measure(sides, evaluation if labelled else None, options, threads, progress)
    rows: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    for side, answers in zip(sides, said, strict=True):
        row = _figures_of(side, answers, measurements.get(side.name))
        if rows:
            row |= _compared(evaluation, said[0], answers, options.examples)
            row["changes"] = _changes(evaluation, rows[0], row)
            unit = "%" if evaluation.metric == "perplexity" else "points"
            outcomes += apply_rules(list(options.rules), side.name, row["changes"], unit)
        rows.append(row)
    return {
        "schema_version": SCHEMA_VERSION,
        "onnxpress_version": onnxpress.__version__,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "task": base.task,
        "machine": dataclasses.asdict(describe_machine()) | {"threads": threads},
        "versions": versions(),
        "evaluation": evaluation.facts() if labelled else None,
        "compared": len(said[0].written or evaluation.examples),
        "divergence_is": DIVERGENCE[base.task],
        "measurement": facts,
        "sides": rows,
        "rules": [dataclasses.asdict(outcome) for outcome in outcomes],
        "passed": all(outcome.passed for outcome in outcomes),
    }


def _ask(side: Side, evaluation: Evaluation, labelled: bool, threads: int) -> Said:
    """Load a side, ask it everything, and let go of it."""
    model, task = side.load(threads), TASKS[evaluation.task]
    try:
        answers = task.ask(model, evaluation.examples)
        scores = task.score(model, evaluation.examples, answers) if labelled else None
        written = _write(model, prompts_for(evaluation)) if evaluation.task == "text-generation" else ()
        return Said(answers, scores, written)
    finally:
        if hasattr(model, "close"):
            model.close()


def _write(model: Any, prompts: list[str]) -> tuple[Written, ...]:
    found = model.generate(prompts, max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    return tuple(
        Written(prompt, tuple(answer.token_ids), answer.text)
        if hasattr(answer, "token_ids")
        else Written(prompt, tuple(answer), model.backend.decode(answer))  # a decoder in PyTorch gives ids alone
        for prompt, answer in zip(prompts, found, strict=True)
    )


def _measure(
    sides: Sequence[Side], evaluation: Evaluation | None, options: Options, threads: int, progress: Progress
) -> tuple[Mapping[str, Measurement], dict[str, Any] | None]:
    """Figures of every side by its name, and what they were measured on."""
    if options.measure == "none":
        return {}, None
    # A bundle tells its tokenizer without loading its weights. All sides get the same texts.
    describing = next((side for side in sides if side.kind == "bundle"), sides[0])
    tokenizer, settings = describing.describe()
    workload, facts = make_workload(tokenizer, settings, evaluation.texts if evaluation else None)
    plan = QUICK if options.measure == "quick" else FULL
    commands = {side.name: side.command(threads) for side in sides}
    found = measure(commands, workload, plan, lambda detail, fraction: progress(f"measuring {detail}"))
    return found, facts | {"mode": options.measure, "rounds": plan.rounds, "threads": threads}


def _figures_of(side: Side, said: Said, measured: Measurement | None) -> dict[str, Any]:
    """What is known of a side by itself; the keys for figures are those of report.json."""
    scores = said.scores
    return {
        "name": side.name,
        "kind": side.kind,
        "location": side.location,
        "variant": side.variant,
        "accuracy": scores and scores.primary,
        "metrics": scores.metrics if scores else {},
        "latency": measured.latency if measured else [],
        "throughput": measured.throughput if measured else [],
        "peak_memory_bytes": measured and measured.peak_memory_bytes,
        "cold_start_seconds": measured and measured.cold_start_seconds,
        "size_bytes": side.size_bytes,
        "accuracy_interval": None,
        "agreement": 1.0,
        "mean_divergence": 0.0,
        "largest_divergence": 0.0,
        "changed_answers": 0,
        "examples": [],
        "changes": None,
    }


def _compared(evaluation: Evaluation, before: Said, after: Said, examples: int) -> dict[str, Any]:
    """What is known of a side against the base."""
    difference: Difference = compare_answers(evaluation, before, after)
    interval = None
    if before.scores is not None and after.scores is not None and _same_units(before, after):
        found = paired_interval(evaluation, before.scores, after.scores)
        interval = dataclasses.asdict(found) if found.finite else None
    return {
        "accuracy_interval": interval,
        "agreement": difference.agreement,
        "mean_divergence": difference.mean_divergence,
        "largest_divergence": difference.largest_divergence,
        "changed_answers": len(difference.changed),
        "examples": [dataclasses.asdict(change) for change in difference.changed[:examples]],
    }


def _same_units(before: Said, after: Said) -> bool:
    """False of decoders whose tokenizers or contexts cut the texts into other windows."""
    assert before.scores is not None
    assert after.scores is not None
    ours, theirs = before.scores.evidence, after.scores.evidence
    if ours.kind == "perplexity":
        return [row[1] for row in ours.rows] == [row[1] for row in theirs.rows]
    return len(ours.rows) == len(theirs.rows)


def _changes(evaluation: Evaluation, base: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float | None]:
    """What `--fail-on` is about, by metric (rules.py says in what)."""
    changes: dict[str, float | None] = {"accuracy": None, "agreement": None}
    if base["accuracy"] is not None:
        changes["accuracy"] = -evaluation.loss(base["accuracy"], row["accuracy"])
    if row["agreement"] is not None:
        changes["agreement"] = 100 * row["agreement"]
    return changes | {name: _change(read(base), read(row)) for name, read in COSTS.items()}


def _change(before: float | None, after: float | None) -> float | None:
    return 100 * (after / before - 1) if before and after is not None else None


def latency_ms(row: Mapping[str, Any]) -> float | None:
    """The median of the shortest text; of a decoder the time to the first token after the shortest prompt."""
    return row["latency"][0]["p50_ms"] if row["latency"] else None


def throughput(row: Mapping[str, Any]) -> float | None:
    """Texts, or new tokens, a second at the batch size that suits it best."""
    return best_rate(row["throughput"])


COSTS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "latency": latency_ms,
    "throughput": throughput,
    "memory": lambda row: row["peak_memory_bytes"],
    "size": lambda row: row["size_bytes"],
    "cold_start": lambda row: row["cold_start_seconds"],
}
"""Metrics of `--fail-on` that are read from a side's row."""
