"""The export, as an ordered table of steps: load, trace, fuse, convert, search, verify, measure, choose, report, seal.

Each step is a plain function from a state to a new state. What is expensive goes through the step cache, so an export
with one more variant redoes only that variant; PyTorch is not even imported when nothing needs it.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxpress.exporter import benchmark, building, bundling, choosing, gate, reporting
from onnxpress.exporter.calibration import SYNTHETIC, Calibration
from onnxpress.exporter.calibration_files import read_calibration
from onnxpress.exporter.config import ExportConfig, ProgressHook
from onnxpress.exporter.labels import label_settings
from onnxpress.exporter.refusals import refuse_unexportable
from onnxpress.exporter.sealing import check_output, seal, staging_folder
from onnxpress.exporter.search import search
from onnxpress.exporter.source import Source, resolve_source
from onnxpress.exporter.state import State
from onnxpress.exporter.stepcache import open_cache
from onnxpress.exporter.tasks import resolve_task
from onnxpress.runtime.errors import InvalidInputError, OnnxpressError
from onnxpress.runtime.evaluation import Evaluation, read_evaluation
from onnxpress.runtime.machine import usable_cores
from onnxpress.runtime.manifest import Manifest

STEPS: tuple[tuple[str, Callable[[State], State]], ...] = (
    ("load", building.load),
    ("trace", building.trace),
    ("fuse", building.fuse),
    ("convert", building.convert),
    ("search", search),
    ("verify", gate.verify),
    ("measure", benchmark.measure),
    ("choose", choosing.choose),
    ("report", reporting.report),
)

_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|problem writing element \d+ to file")
"""What numpy's `tofile`, which writes weights, says in place of the system's reason when the disk is full."""


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What an export made."""

    folder: Path
    """The sealed bundle."""
    manifest: Manifest
    report: dict[str, Any]
    """The content of report.json (docs/bundle.md)."""

    def summary(self) -> dict[str, Any]:
        """A short machine-readable account: what `onnxpress export --json` prints."""
        return {
            "bundle": str(self.folder),
            "default_variant": self.manifest.default_variant,
            "default_reason": self.manifest.default_reason,
            "search": self.report["search"],
            "metrics": {"evaluation": self.report["evaluation"], "baseline": self.report["baseline"]},
            "variants": [
                {key: value for key, value in variant.items() if key not in ("passes", "candidates", "parity")}
                for variant in self.report["variants"]
            ],
            "report": str(self.folder / "report.html"),
        }


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: ExportConfig | None = None,
    *,
    progress: ProgressHook = lambda step, detail, fraction: None,
    verbose: bool = False,
) -> ExportResult:
    """Press a model into a bundle.

    Args:
        model: a local folder, a recipe's name or a hub id.
        output: the folder to create; it appears whole, when everything has passed, or not at all.
        config: options; None for all defaults.
        progress: called as the export goes on.
        verbose: let the libraries underneath write to stderr.

    Raises:
        InvalidInputError: an option, the model's name, the output or an evaluation file cannot be used.
        UnsupportedModelError: the model cannot be exported.
        VerificationError: no variant agrees with PyTorch; nothing was written.
    """
    try:
        return _export(os.fspath(model), Path(output), config or ExportConfig(), progress, verbose)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or str(error)
        if _SHORT_WRITE.search(reason):
            reason = "a file could not be written in full, most likely because the disk is full"
        raise InvalidInputError(f"the export stopped: {reason}{where}; no bundle was written") from error


def _export(model: str, output: Path, config: ExportConfig, progress: ProgressHook, verbose: bool) -> ExportResult:
    check_output(output, config.force)
    progress("load", "finding the model", 0.0)
    source = resolve_source(model, config, progress)
    searches = config.max_accuracy_drop is not None or config.min_metric is not None  # asked for, not by a recipe
    if source.recipe is not None:
        config = source.recipe.apply(config)
    task = resolve_task(config.task, source)
    config.check_task(task)
    if source.onnx is None:
        refuse_unexportable(str(source.config.get("model_type")), source.name, task)
    evaluation, calibration = _read_data(config, task, source)
    with staging_folder(output, config.force) as folder, open_cache(config.cache) as cache:
        state = State(
            config=config,
            source=source,
            task=task,
            evaluation=evaluation,
            calibration=calibration,
            folder=folder,
            cache=cache,
            threads=config.threads or usable_cores(),
            progress=progress,
            verbose=verbose,
            searches=searches,
            created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        for name, step in STEPS:
            state = _timed(name, step, state)
        progress("seal", "moving the bundle into place", 0.0)
        manifest = bundling.write_manifest(state, final=True)
        seal(folder, output, config.force)
        progress("seal", str(output), 1.0)
    assert state.report is not None
    return ExportResult(output, manifest, state.report)


def _read_data(config: ExportConfig, task: str, source: Source) -> tuple[Evaluation | None, Calibration | None]:
    """What was given to evaluate and to calibrate on."""
    labels = label_settings(task, source)  # also refuses labels that do not fit the task, before anything is loaded
    names, function = ((), "softmax") if labels is None else (labels.names, labels.function)
    evaluation = calibration = None
    for name in ("evaluation_columns", "evaluation_labels", "evaluation_split", "evaluation_samples"):
        if getattr(config, name) is not None and not config.evaluation:
            raise InvalidInputError(f"{name} says how evaluation data is read, but there is none; give some (--eval)")
    if config.calibration_columns is not None and config.calibration in (None, (), SYNTHETIC):
        raise InvalidInputError("calibration_columns says how files are read, but calibration names none")
    if config.min_metric is not None and not config.evaluation:
        raise InvalidInputError("min_metric needs labelled examples to measure it on; give evaluation files, too")
    if config.evaluation:
        evaluation = read_evaluation(config.evaluation, task, names, function, config.evaluation_data())
    if config.calibration:
        calibration = read_calibration(config.calibration, task, config.calibration_data(), names, function)
    return evaluation, calibration


def _timed(name: str, step: Callable[[State], State], state: State) -> State:
    state.progress(name, "", 0.0)
    start = time.perf_counter()
    try:
        state = step(dataclasses.replace(state, cached=True))
    except OnnxpressError:
        state.progress(name, "failed", None)
        raise
    seconds = round(time.perf_counter() - start, 2)
    record = {"name": name, "seconds": seconds, "cached": state.cached}
    state.progress(name, "cached" if state.cached else "", 1.0)
    return dataclasses.replace(state, timings=(*state.timings, record))
