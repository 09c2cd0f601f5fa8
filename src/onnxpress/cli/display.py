"""What an export shows while it runs, and the table at its end. Everything goes to stderr."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onnxpress.runtime.measuring import best_rate

if TYPE_CHECKING:
    from onnxpress.exporter.page.values import Metric

_STEPS = ("load", "trace", "fuse", "convert", "search", "verify", "measure", "choose", "report", "seal")
_WORDS = {
    "load": "load the model",
    "trace": "trace the graph",
    "fuse": "fuse operators",
    "convert": "make variants",
    "search": "search precisions",
    "verify": "verify against the model",
    "measure": "measure",
    "choose": "choose the default",
    "report": "write the report",
    "seal": "seal the bundle",
}


class ExportDisplay:
    """A line for each step with its bar and elapsed time, drawn live on a terminal, one line a step elsewhere."""

    def __init__(self, quiet: bool, plain: bool) -> None:
        # A copy of stderr: the libraries' output is kept off the original while they run (exporter/quiet.py).
        self._file = os.fdopen(os.dup(2), "w")
        self._console = Console(file=self._file, quiet=quiet, highlight=False)
        if not self._console.is_terminal:
            self._console.width = 120  # a log file has no width
        self._states: dict[str, dict[str, Any]] = {}
        self._live: Live | None = None
        if self._console.is_terminal and not plain:
            # What others print is not ours to show: by default Live would put it above the display.
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=8,
                redirect_stdout=False,
                redirect_stderr=False,
            )
        self._quiet = quiet

    def __enter__(self) -> ExportDisplay:
        if self._live is not None and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._file.close()

    def update(self, step: str, detail: str, fraction: float | None) -> None:
        """Progress as `onnxpress.export` tells it."""
        state = self._states.setdefault(step, {"start": time.monotonic(), "fraction": None})
        state["detail"] = detail
        if fraction is not None:
            state["fraction"] = fraction
        if fraction == 1.0:
            state["end"] = time.monotonic()
            if self._live is None:
                seconds = state["end"] - state["start"]
                self._console.print(f"{_WORDS[step]:<24} {seconds:6.1f} s  {detail}", markup=False)

    def show_result(self, report: Mapping[str, Any], folder: Path) -> None:
        """The variants, side by side, and where everything is; no progress is shown after it."""
        self._stop()
        self._console.print(result_table(report, self._console.width))
        for variant in report["variants"]:
            if variant["failure"]:
                self._console.print(f"{variant['name']} is not in the bundle: {variant['failure']}", markup=False)
        for note in (*report["model"]["notes"], *_data_notes(report)):
            self._console.print(note, markup=False)
        default = report["default"]
        self._console.print(f"default: {default['variant']}, {default['reason']}", markup=False)
        self._console.print(f"bundle:  {folder}", markup=False, soft_wrap=True)
        self._console.print(f"report:  {folder / 'report.html'}", markup=False, soft_wrap=True)

    def _stop(self) -> None:
        now = time.monotonic()
        for state in self._states.values():
            state.setdefault("end", now)
        if self._live is not None:
            self._live.stop()

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for step in _STEPS:
            state = self._states.get(step)
            if state is None:
                table.add_row(Text(_WORDS[step], style="dim"), ProgressBar(total=1, completed=0, width=24), "", "")
                continue
            done = "end" in state
            seconds = state.get("end", time.monotonic()) - state["start"]
            fraction = 1.0 if done else state["fraction"]
            bar = ProgressBar(total=1, completed=fraction or 0, width=24, pulse=not done and not fraction)
            detail = Text(state["detail"], style="dim", overflow="ellipsis", no_wrap=True)
            table.add_row(Text(_WORDS[step]), bar, f"{seconds:5.1f} s", detail)
        return table


def _data_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """What is said of the data that accuracy and quantization rest on."""
    from onnxpress.exporter.page.method import synthetic_warning

    evaluation = report["evaluation"]
    if evaluation and evaluation["rows"] > evaluation["samples"]:
        yield f"accuracy on {evaluation['samples']:,} of {evaluation['rows']:,} examples, drawn evenly (--eval-samples)"
    if (warning := synthetic_warning(report)) is not None:
        yield warning


@dataclasses.dataclass(frozen=True)
class _Column:
    """A heading, what reads a row's text, and which columns go first where all are too wide: the highest of these."""

    heading: str
    read: Callable[[Mapping[str, Any]], str]
    expendable: int = 0


def result_table(report: Mapping[str, Any], width: int) -> Table:
    """The baseline and every variant; figures that a narrow terminal has no room for are in the report."""
    rows = [*([{"agreement": 1.0, **report["baseline"]}] if report["baseline"] else []), *report["variants"]]
    columns = _columns(report)
    while _width(columns, rows) > width and (most := max(columns, key=lambda column: column.expendable)).expendable:
        columns.remove(most)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="left" if column.heading in _WORD_COLUMNS else "right", no_wrap=True)
    for row in rows:
        style = "bold green" if row.get("default") else "dim" if row.get("status") == "failed" else None
        table.add_row(*(Text(column.read(row)) for column in columns), style=style)
    return table


def _width(columns: Sequence[_Column], rows: Sequence[Mapping[str, Any]]) -> int:
    """Characters a line takes."""
    texts = [[column.heading, *(column.read(row) for row in rows)] for column in columns]
    return sum(max(map(cell_len, column)) + 2 for column in texts) - 2


_WORD_COLUMNS = ("variant", "status")


def _columns(report: Mapping[str, Any]) -> list[_Column]:
    from onnxpress.exporter.page.values import metrics  # not before the exporter has been found to be installed

    figures = [
        _Column(metric.name, partial(_metric, metric=metric), 0 if metric.primary else 5 + index)
        for index, metric in enumerate(metrics(report))
    ]
    if any(row["changed_answers"] is not None for row in report["variants"]):
        figures.append(_Column("changed", lambda row: _number(row.get("changed_answers"), ",d"), 1))
    return [
        _Column("variant", lambda row: str(row["name"]).removeprefix("the ")),
        *figures,
        _Column("agreement", lambda row: _number(row["agreement"], ".5f"), 3 if figures else 0),
        *(_writing_columns(report) if report["model"]["task"] == "text-generation" else _READING_COLUMNS),
        _Column("RAM MB", lambda row: _number(_megabytes(row["peak_memory_bytes"]), ",.0f"), 2),
        _Column("start s", lambda row: _number(row["cold_start_seconds"], ".2f"), 4),
        _Column("disk MB", lambda row: _number(_megabytes(row["size_bytes"]), ",.1f")),
        _Column("status", _status),
    ]


_READING_COLUMNS = (
    _Column("ms", lambda row: _number(row["latency"][0]["p50_ms"] if row["latency"] else None, ".2f")),
    _Column("texts/s", lambda row: _number(best_rate(row["throughput"]), ",.0f")),
)


def _writing_columns(report: Mapping[str, Any]) -> list[_Column]:
    """Of a decoder, at the prompt length after which decoding was timed: the prompt, the wait, new tokens a second."""
    after = (report["measurement"] or {}).get("prompt_tokens")
    rows = (row for row in report["variants"] if row["throughput"])
    batches = sorted({entry["batch"] for row in rows for entry in row["throughput"]})

    def first(row: Mapping[str, Any], key: str) -> float | None:
        return next((entry[key] for entry in row["latency"] if entry["tokens"] == after), None)

    columns = [
        _Column("prompt tok/s", lambda row: _number(first(row, "tokens_per_second"), ",.0f"), 2),
        _Column("first ms", lambda row: _number(first(row, "p50_ms"), ",.1f")),
    ]
    for batch in batches or [1]:
        name = "tok/s" if batch == 1 else f"tok/s x{batch}"
        columns.append(_Column(name, partial(_rate, batch=batch)))
    return columns


def _rate(row: Mapping[str, Any], batch: int) -> str:
    rates = {entry["batch"]: entry["tokens_per_second"] for entry in row["throughput"]}
    return _number(rates.get(batch), ",.0f")


def _metric(row: Mapping[str, Any], metric: Metric) -> str:
    return _number(row["accuracy"] if metric.primary else row["metrics"].get(metric.key), ".2f")


def _status(row: Mapping[str, Any]) -> str:
    return "default" if row.get("default") else str(row.get("status", "baseline"))


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
