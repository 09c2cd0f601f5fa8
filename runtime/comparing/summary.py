"""A comparison as a small table of texts, a line for each figure: what the terminal, Markdown and the page all show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from onnxpress.runtime.comparing.comparison import COSTS, latency_ms, throughput

MISSING = "-"
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Line:
    """One figure of every side."""

    title: str
    cells: tuple[tuple[str, str], ...]
    """Of each side, the base first: the figure, and how it differs from the base's; empty where there is nothing."""


def summary_lines(document: Mapping[str, Any]) -> list[Line]:
    """The lines that have a figure at all.

    Args:
        document: what `compare` gave.
    """
    return [line for line in _lines(document) if any(figure != MISSING for figure, _ in line.cells)]


def _lines(document: Mapping[str, Any]) -> list[Line]:
    sides, evaluation = document["sides"], document["evaluation"]
    writes = document["task"] == "text-generation"
    lines = []
    if evaluation:
        lines.append(_accuracy(document))
        others = [key for key in sides[0]["metrics"] if key != evaluation["metric"]]
        lines += [_line(key.replace("_", " "), sides, partial(_metric, key=key)) for key in others]
    form = ".5f" if document["task"] == "feature-extraction" else ".4f"
    lines += [
        _line("agreement with the base", sides, lambda row: row["agreement"], form),
        _line("divergence, mean", sides, lambda row: row["mean_divergence"], ".2g"),
        _line("divergence, largest", sides, lambda row: row["largest_divergence"], ".2g"),
        Line(
            f"changed answers of {document['compared']:,}", tuple((f"{row['changed_answers']:,}", "") for row in sides)
        ),
        _cost("latency", f"{_latency_of(sides)}, p50 ms", sides, latency_ms),
        _line(
            f"{_latency_of(sides)}, p95 ms", sides, lambda row: row["latency"][0]["p95_ms"] if row["latency"] else None
        ),
        _cost("throughput", f"{'new tokens' if writes else 'texts'} a second", sides, throughput, ",.0f"),
        _cost("memory", "peak memory, MB", sides, lambda row: _megabytes(row["peak_memory_bytes"]), ",.0f"),
        _cost("cold_start", "cold start, s", sides, COSTS["cold_start"]),
        _cost("size", "size, MB", sides, lambda row: _megabytes(row["size_bytes"]), ",.1f"),
    ]
    return lines


def _accuracy(document: Mapping[str, Any]) -> Line:
    cells = []
    for row in document["sides"]:
        change = ""
        if row["changes"] is not None and row["accuracy"] is not None:
            difference = row["accuracy"] - document["sides"][0]["accuracy"]
            if document["evaluation"]["metric"] == "perplexity":
                change = f"{_signed(-row['changes']['accuracy'])} %"
            else:
                change = _signed(difference)
            if (interval := row["accuracy_interval"]) is not None:
                change += f" ({_signed(interval['low'])} to {_signed(interval['high'])})"
        cells.append((_number(row["accuracy"], ".2f"), change))
    return Line(document["evaluation"]["label"], tuple(cells))


def _metric(row: Mapping[str, Any], key: str) -> float | None:
    value: float | None = row["metrics"].get(key)
    return value


def _latency_of(sides: Any) -> str:
    rows: list[Any] = next((row["latency"] for row in sides if row["latency"]), [])
    if not rows:
        return "latency"
    kind = "first token after" if "tokens_per_second" in rows[0] else "latency of"
    return f"{kind} {rows[0]['tokens']} tokens"


def _line(title: str, sides: Any, read: Callable[[Any], float | None], form: str = ".2f") -> Line:
    return Line(title, tuple((_number(read(row), form), "") for row in sides))


def _cost(metric: str, title: str, sides: Any, read: Callable[[Any], float | None], form: str = ".2f") -> Line:
    """With the change against the base in percent."""

    def change(row: Any) -> str:
        found = None if row["changes"] is None else row["changes"][metric]
        return "" if found is None else f"{round(found):+d} %"

    return Line(title, tuple((_number(read(row), form), change(row)) for row in sides))


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / _MB


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # + 0.0: no minus before zero


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def compared_on(document: Mapping[str, Any]) -> str:
    """What the answers were compared on, in words."""
    evaluation = document["evaluation"]
    if evaluation is None:
        return "texts of onnxpress; their labels do not count, so there is no accuracy"
    count = evaluation["samples"]
    return f"{count:,} example{'s' * (count != 1)} of {', '.join(evaluation['files'])}"


def outcome_text(outcome: Mapping[str, Any]) -> str:
    """A rule's verdict on a side: int8 fails accuracy<-0.5%: -0.81 points."""
    return f"{outcome['side']} {'holds' if outcome['passed'] else 'fails'} {outcome['rule']}: {found_text(outcome)}"


def found_text(outcome: Mapping[str, Any]) -> str:
    """What a rule was applied to."""
    if outcome["change"] is None:
        return "it could not be determined"
    value = f"{outcome['change']:.2f}" if outcome["metric"] == "agreement" else _signed(outcome["change"])
    return f"{value} {outcome['unit']}"
