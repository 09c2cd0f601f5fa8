"""`onnxpress bench`: a bundle's variants measured again on the machine that serves, without torch.

A bundle is sealed, so the figures go to the user's cache, keyed by the manifest's hash, the machine and onnxruntime's
version. They change nothing by themselves: `onnxpress.load` goes on opening the bundle's default.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError, ProviderError
from onnxpress.runtime.machine import describe_machine, onnxruntime_version, usable_cores
from onnxpress.runtime.manifest import Variant
from onnxpress.runtime.paths import user_cache, write_atomically
from onnxpress.runtime.settings import require_threads

if TYPE_CHECKING:
    from onnxpress.runtime.evaluation import Evaluation

SCHEMA_VERSION = 1
_CLEARLY = 0.05  # a difference of less may be noise
Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done, None where that is not known."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What a variant reached on an evaluation here."""

    metrics: dict[str, float]
    """Figures by name, the primary one first; in points, except perplexity."""
    label: str
    """Of the primary one, for a person."""
    files: tuple[str, ...]
    sha256: str
    """Of the evaluation's files."""
    samples: int

    @property
    def primary(self) -> float:
        """The figure by which variants are judged."""
        return next(iter(self.metrics.values()))


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one variant on this machine; `latency`, `throughput` and `measurement` as in report.json (docs/bundle.md)."""

    name: str
    created: str
    """UTC time."""
    measurement: dict[str, Any]
    latency: tuple[dict[str, Any], ...]
    throughput: tuple[dict[str, Any], ...]
    peak_memory_bytes: int | None
    cold_start_seconds: float
    accuracy: Accuracy | None = None


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is known of a bundle on this machine."""

    variants: tuple[Figures, ...]
    problem: str | None = None
    """A sentence where there is a file that cannot be read."""

    def of(self, name: str) -> Figures | None:
        """The figures of a variant."""
        return next((figures for figures in self.variants if figures.name == name), None)


def read_bench(bundle: Bundle) -> Bench:
    """The figures that were kept of a bundle on this machine, with this onnxruntime; none where a file is broken."""
    path = _path(bundle)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.pop("schema_version", None) != SCHEMA_VERSION:
            raise ValueError(f"expected schema version {SCHEMA_VERSION}")
        found = decode(Bench, document)
        for figures in found.variants:
            _check(figures)
        return Bench(found.variants)
    except FileNotFoundError:
        return Bench(())
    except (OSError, ValueError, RecursionError) as error:
        return Bench((), f"{path} cannot be used and is ignored: {error}; onnxpress bench writes it anew")


def choose_variants(bundle: Bundle, names: Sequence[str]) -> tuple[list[Variant], dict[str, str]]:
    """The variants to measure, and why others cannot be measured here.

    Args:
        bundle: an opened bundle.
        names: of variants; none: all whose provider this machine has.

    Raises:
        InvalidBundleError: there is no such variant.
        ProviderError: one that was named, or every one, needs what this machine does not have.
    """
    from onnxpress.runtime.providers import SHORT_NAMES, unusable_because

    wanted = [bundle.manifest.variant(name) for name in dict.fromkeys(names)] or list(bundle.manifest.variants)
    reasons = {each.name: reason for each in wanted if (reason := unusable_because(SHORT_NAMES[each.target]))}
    if reasons and (names or len(reasons) == len(wanted)):
        name, reason = next(iter(reasons.items()))
        raise ProviderError(f"variant {name!r} is for {bundle.manifest.variant(name).target}: {reason}")
    return [variant for variant in wanted if variant.name not in reasons], reasons


def measure_bundle(
    bundle: Bundle,
    variants: Sequence[Variant],
    mode: Literal["quick", "full"] = "quick",
    threads: int | None = None,
    evaluation: Evaluation | None = None,
    progress: Progress = lambda detail, fraction: None,
) -> tuple[Figures, ...]:
    """Measure variants against each other, each in a process of its own.

    Args:
        bundle: an opened bundle; it may be read-only.
        variants: of the bundle, whose providers this machine has.
        mode: how long.
        threads: CPU threads; None for the cores this process may use.
        evaluation: to measure the accuracy on, too; throughput is then measured on its texts.
        progress: called as it goes on.

    Raises:
        InvalidInputError: `threads` cannot be meant, or a library that accuracy needs is missing.
        InvalidBundleError: a variant does not load.
    """
    from onnxpress.runtime.measuring import FULL, QUICK, measure, variant_command
    from onnxpress.runtime.timed_texts import make_workload
    from onnxpress.runtime.tokenizer import Tokenizer

    require_threads(threads)
    threads = threads or usable_cores()
    _require_place(bundle)
    settings = bundle.manifest.settings
    accuracies = {each.name: _accuracy(bundle, each, threads, evaluation, progress) for each in variants}
    tokenizer = Tokenizer(bundle.path_of(settings.tokenizer.file), settings.tokenizer)
    workload, facts = make_workload(tokenizer, settings, evaluation.texts if evaluation else None)
    plan = {"quick": QUICK, "full": FULL}[mode]
    commands = {each.name: variant_command(bundle.folder, each.name, threads) for each in variants}
    measured = measure(commands, workload, plan, progress)
    facts |= {"mode": mode, "rounds": plan.rounds, "threads": threads}
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return tuple(
        Figures(
            name=name,
            created=created,
            measurement=facts,
            latency=tuple(found.latency),
            throughput=tuple(found.throughput),
            peak_memory_bytes=found.peak_memory_bytes,
            cold_start_seconds=round(found.cold_start_seconds, 3),
            accuracy=accuracies[name],
        )
        for name, found in measured.items()
    )


def keep(bundle: Bundle, measured: Sequence[Figures]) -> Bench:
    """Keep figures beside those of other variants, and an accuracy that was not measured again.

    Raises:
        InvalidInputError: the user's cache cannot be written.
    """
    before = {figures.name: figures for figures in read_bench(bundle).variants}
    for figures in measured:
        old = before.get(figures.name)
        if figures.accuracy is None and old is not None:
            figures = dataclasses.replace(figures, accuracy=old.accuracy)
        before[figures.name] = figures
    kept = tuple(before[each.name] for each in bundle.manifest.variants if each.name in before)
    document = {"schema_version": SCHEMA_VERSION, "variants": [dataclasses.asdict(figures) for figures in kept]}
    path = _require_place(bundle)
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
    return Bench(kept)


def advice(bundle: Bundle, bench: Bench) -> str | None:
    """A sentence where another variant than the bundle's default is clearly faster here, by what the default was chosen
    by, and holds the accuracy; None where there is none, or the default was not measured."""
    manifest, report = bundle.manifest, bundle.report()
    objective = report.get("objective") or "throughput"
    default = bench.of(manifest.default_variant)
    if default is None or objective not in ("latency", "throughput"):
        return None
    own = _speed(default, objective)
    held = [
        figures
        for figures in bench.variants
        if manifest.variant(figures.name).status == "passed"
        and figures.created == default.created  # measured in turn
        and not _loses(default.accuracy, figures.accuracy, report.get("max_accuracy_drop"))
    ]
    best = max(held, key=lambda figures: _speed(figures, objective), default=default)
    gain = _speed(best, objective) / own
    if gain < 1 + _CLEARLY:
        return None
    return (
        f"{best.name} is {gain:.2f}x as fast as {default.name}, the bundle's default, by {objective} on this machine: "
        f"load(..., variant={best.name!r}), or --variant {best.name}"
    )


def _speed(figures: Figures, objective: str) -> float:
    """More is better: calls a second of one short text, or the best rate; of a decoder, new tokens a second of one
    request alone, or of as many as suits it."""
    from onnxpress.runtime.measuring import best_rate

    alone = min(figures.throughput, key=lambda row: float(row["batch"]))
    if objective == "latency" and "tokens_per_second" in alone:
        return float(alone["tokens_per_second"])
    if objective == "latency":
        return 1e3 / float(figures.latency[0]["p50_ms"])
    return best_rate(figures.throughput) or 0.0


def _loses(before: Accuracy | None, after: Accuracy | None, allowed: object) -> bool:
    """Whether a variant was found here to be worse than another by more than was allowed when the bundle was made."""
    from onnxpress.runtime.evaluation.base import loss_of

    if before is None or after is None or before.sha256 != after.sha256 or not isinstance(allowed, int | float):
        return False
    return loss_of(next(iter(before.metrics)), before.primary, after.primary) > allowed


def bundle_figures(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What report.json says of each variant, with its `measurement`; empty where no report can be read."""
    report = bundle.report()
    try:
        return {str(row["name"]): row | {"measurement": report["measurement"]} for row in report["variants"]}
    except (LookupError, TypeError):  # as below
        return {}


def _accuracy(
    bundle: Bundle, variant: Variant, threads: int, evaluation: Evaluation | None, progress: Progress
) -> Accuracy | None:
    if evaluation is None:
        return None
    from onnxpress.runtime.evaluation import evaluate
    from onnxpress.runtime.model import load

    progress(f"{variant.name}, accuracy", None)
    model: Any = load(bundle.folder, variant=variant.name, threads=threads)
    try:
        scores = evaluate(model, evaluation)
    finally:
        model.close()  # nothing of it may run while others are timed
    files, samples = tuple(evaluation.files), len(evaluation.examples)
    metrics = {name: float(value) for name, value in scores.metrics.items()}
    return Accuracy(metrics, evaluation.label, files, evaluation.sha256, samples)


def _check(figures: Figures) -> None:
    """Raise ValueError where rows lack what is read of them."""
    for row in figures.latency:
        _require_positive(row, "tokens", "p50_ms")
    for row in figures.throughput:
        _require_positive(row, "batch", "tokens_per_second" if "tokens_per_second" in row else "texts_per_second")
    if not figures.latency or not figures.throughput:
        raise ValueError(f"{figures.name} has no figures")


def _require_positive(row: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{key} is {value!r}")


def _require_place(bundle: Bundle) -> Path:
    """Where figures are kept, found to be a place that can be written."""
    path = _path(bundle)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        reason = None if os.access(path.parent, os.W_OK) else "it cannot be written"
    if reason:
        raise InvalidInputError(
            f"figures cannot be kept in {path.parent}: {reason}; set ONNXPRESS_CACHE to a folder that can be written"
        )
    return path


def _path(bundle: Bundle) -> Path:
    name = f"{describe_machine().key()}-ort{onnxruntime_version()}.json"
    return user_cache() / "bench" / bundle.manifest_sha256[:32] / name
