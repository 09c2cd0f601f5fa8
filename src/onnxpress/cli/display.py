"""What an export shows while it runs, and the table at its end. Everything goes to stderr."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_STEPS = ("load", "trace", "fuse", "convert", "verify", "measure", "choose", "report", "seal")
_WORDS = {
    "load": "load the model",
    "trace": "trace the graph",
    "fuse": "fuse operators",
    "convert": "make variants",
    "verify": "verify against PyTorch",
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
        self._console.print(_result_table(report))
        for variant in report["variants"]:
            if variant["failure"]:
                self._console.print(f"{variant['name']} is not in the bundle: {variant['failure']}", markup=False)
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


def _result_table(report: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("variant", no_wrap=True)
    for heading in ("accuracy", "agreement", "ms", "texts/s", "RAM MB", "start s", "disk MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    if report["baseline"]:
        table.add_row(*_row({"agreement": 1.0, **report["baseline"]}), "baseline")
    for variant in report["variants"]:
        style = "bold green" if variant["default"] else "dim" if variant["status"] == "failed" else None
        status = "default" if variant["default"] else variant["status"]
        table.add_row(*_row(variant), status, style=style)
    return table


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    latency = row["latency"][0]["p50_ms"] if row["latency"] else None
    rate = max((entry["texts_per_second"] for entry in row["throughput"]), default=None)
    memory, size = row["peak_memory_bytes"], row["size_bytes"]
    return (
        row.get("name", ""),
        _number(row["accuracy"], ".2f"),
        _number(row["agreement"], ".5f"),
        _number(latency, ".2f"),
        _number(rate, ",.0f"),
        _number(memory and memory / 1e6, ",.0f"),
        _number(row["cold_start_seconds"], ".2f"),
        _number(size and size / 1e6, ",.1f"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
