"""What the search tried and found, and how sensitive nodes are to fewer bits: their part of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxpress.exporter.page.charts import Bar, Panel
from onnxpress.exporter.page.figures import bar_figure
from onnxpress.exporter.page.markup import Html, element
from onnxpress.exporter.page.tables import cell, definitions, head, row_head, table
from onnxpress.exporter.page.values import (
    MISSING,
    Report,
    accuracy_decimals,
    figure,
    fixed,
    loss_unit,
    lower_is_better,
    megabytes,
    number,
    part,
    scientific,
    significant,
)

_MOST_BARS = 12
_MOST_SHARE = 0.75
_MOST_TRIALS = 30
_ENDED = {"budget": "when its time was up", "interrupt": "when it was interrupted"}

Row = Mapping[str, Any]


def search_lead(report: Report) -> str | None:
    """What was asked for, and what came of it."""
    found = part(report, "search")
    if not found:
        return None
    splits, seconds = part(found, "splits"), figure(found, "seconds")
    if not splits:
        return str(found.get("sentence") or "")
    ended = _ENDED.get(str(found.get("ended")))
    examples = (
        f"The evaluation was split: {number(figure(splits, 'search'), 0)} examples to search with, "
        f"{number(figure(splits, 'held_out'), 0)} to check the result with. Speeds are against float32, run in turn."
    )
    took = (
        "" if seconds is None else f" The search took {significant(seconds)} s{f' and ended {ended}' if ended else ''}."
    )
    return f"{found.get('sentence') or ''} {examples}{took}".strip()


def search_content(report: Report) -> list[Html | None]:
    """The trials, and the check of the accepted one."""
    return [_trials_table(report), _held_out(report)]


def _trials_table(report: Report) -> Html | None:
    found = part(report, "search")
    trials = [trial for trial in found.get("trials") or [] if isinstance(trial, Mapping)]
    if not trials:
        return None
    accepted, decimals = part(found, "accepted").get("trial"), accuracy_decimals(report)
    title, allowed = "Rise" if lower_is_better(report) else "Drop", figure(part(found, "limit"), "max_accuracy_drop")
    most = loss_unit(report) if allowed is None else f"{loss_unit(report)}, at most {allowed:g}"
    headings = [head("Graph"), head("Nodes by precision"), head("Divergence", numeric=True)]
    headings += [head(title, most, numeric=True), head("Speed", "float32 = 1", numeric=True)]
    headings += [head("Size", "MB", numeric=True), head("Holds")]
    rows = [_trial_row(trial, decimals, trial.get("name") == accepted) for trial in trials[:_MOST_TRIALS]]
    if len(trials) > _MOST_TRIALS:
        more = f"and {len(trials) - _MOST_TRIALS} more, in report.json"
        rows.append(element("tr", element("td", more, colspan=len(headings), class_="reason")))
    return table("Graphs tried", headings, rows, class_="trials")


def _trial_row(trial: Row, decimals: int, accepted: bool) -> Html:
    mark = element("span", "accepted", class_="default-mark") if accepted else None
    counts = part(trial, "nodes")
    listed = ", ".join(f"{number(figure(counts, precision), 0)} {precision}" for precision in counts)
    return element(
        "tr",
        row_head(trial.get("name"), " " if mark else None, mark),
        element("td", listed or MISSING),
        cell(scientific(figure(trial, "divergence"))),
        cell(fixed(figure(trial, "drop"), decimals)),
        cell(number(figure(trial, "speedup"), 2)),
        cell(number(megabytes(figure(trial, "size_bytes")), 1)),
        element("td", _verdict(trial)),
        class_="default" if accepted else None,
    )


def _verdict(trial: Row) -> str:
    """Whether a trial holds; if not for its metric, why."""
    if trial.get("failure"):
        return f"✕ {trial['failure']}"
    if trial.get("holds_held_out") is False:
        return "✕ not on the examples held out"
    return "✓ yes" if trial.get("holds") else "✕ no"


def _held_out(report: Report) -> Html | None:
    """Both figures of the trial that was checked, each with its interval."""
    found = part(part(report, "search"), "held_out")
    if not found:
        return None
    facts: list[tuple[str, object]] = [
        (f"{name}: {found.get('trial')}", _change(report, part(found, key)))
        for key, name in (("search", "Searched with"), ("held_out", "Held out"))
        if part(found, key)
    ]
    looks = figure(found, "looks") or 0
    facts.append(("Looks at the held-out part", number(looks, 0)))
    return definitions(facts)


def _change(report: Report, found: Row) -> str:
    decimals, unit = accuracy_decimals(report), loss_unit(report)
    before, after = fixed(figure(found, "float32"), decimals), fixed(figure(found, "metric"), decimals)
    ends = found.get("interval")
    interval = ""
    if isinstance(ends, Sequence) and len(ends) == 2:
        low, high = (fixed(float(end), decimals) for end in ends)
        interval = f"; change with its 95 % interval: {low} to {high} {unit}"
    return f"{after} against {before} in float32 on {number(figure(found, 'samples'), 0)} examples{interval}"


def sensitivity_charts(report: Report) -> list[Html | None]:
    """For each quantized graph, the divergence that each of its nodes makes alone, the largest first."""
    precisions = [entry for entry in part(report, "sensitivity").get("precisions") or [] if isinstance(entry, Mapping)]
    kept = _kept_in_float32(report)
    charts: list[Html | None] = []
    for order, entry in enumerate(precisions):
        nodes = [node for node in entry.get("nodes") or [] if figure(node, "divergence") is not None]
        nodes.sort(key=lambda node: figure(node, "divergence") or 0.0, reverse=True)
        if not nodes:
            continue
        shared = _shared_prefix([_name(node) for node in nodes])
        panel = Panel(str(entry.get("precision")), [_bar(node, shared, kept) for node in nodes[:_MOST_BARS]])
        name = f"sensitivity-{order}-chart"
        charts.append(bar_figure(name, f"Divergence of single nodes in {panel.title}", [panel], None))
        if len(nodes) > _MOST_BARS:
            charts.append(element("p", f"And {len(nodes) - _MOST_BARS} more, each with less.", class_="remark"))
    return charts


def _kept_in_float32(report: Report) -> set[str]:
    """Nodes that the accepted mixture has in float32."""
    found = part(report, "search")
    name = part(found, "accepted").get("trial")
    trials = (trial for trial in found.get("trials") or [] if isinstance(trial, Mapping) and trial.get("name") == name)
    return {str(node) for trial in trials for node in trial.get("float32_nodes") or []}


def _name(node: Row) -> str:
    return str(node.get("module") or node.get("node"))


def _shared_prefix(names: Sequence[str]) -> str:
    """What the module paths of most begin with: the modules around the layers."""
    best = ""
    for name in names:
        for place in (index for index, letter in enumerate(name) if letter == "."):
            start = name[: place + 1]
            most = sum(other.startswith(start) for other in names) >= _MOST_SHARE * len(names)
            if most and len(start) > len(best):
                best = start
    return best[: best.rstrip(".").rfind(".") + 1]  # "layer." stays: the number after it says nothing alone


def _bar(node: Row, shared: str, kept: set[str]) -> Bar:
    value, local = figure(node, "divergence"), figure(node, "local_error")
    quantized, plain = (number(megabytes(figure(node, key)), 2) for key in ("size_bytes", "float32_bytes"))
    stays = str(node.get("node")) in kept
    shown = scientific(value) + " · fp32" * stays
    lines = [
        _name(node),
        f"{node.get('op_type')} {node.get('node')}",
        f"Divergence {scientific(value)}{'' if node.get('measured') else ', estimated from the local error'}",
        f"Local error {scientific(local)}",
        f"Weights {quantized} MB, in float32 {plain} MB",
    ]
    return Bar(_name(node).removeprefix(shared), value, shown, "\n".join(lines), "default" if stays else "other")
