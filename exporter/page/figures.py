"""The charts of the report page: which figures of the report go into them, and what is said about them.

Every chart is drawn for several widths, and report.css shows the one that fits: an SVG that is merely scaled down to a
phone cannot be read. Where there is nothing to draw, there is no chart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxpress.exporter.page.charts import Bar, Kind, Panel, bar_chart
from onnxpress.exporter.page.markup import Html, element
from onnxpress.exporter.page.scatter import AxisText, Point, pareto_front, point_path, scatter_chart
from onnxpress.exporter.page.tables import cell, head, row_head, table
from onnxpress.exporter.page.values import (
    Report,
    Series,
    accuracy,
    accuracy_decimals,
    all_series,
    baseline_series,
    capitalized,
    figure,
    fixed,
    lower_is_better,
    megabytes,
    metrics,
    number,
    part,
    reference,
    reference_tokens,
    significant,
    token_milliseconds,
    writes,
)

# Pixels inside a card, on a desktop, a tablet and a phone 390 pixels wide. The names are those of report.css.
_WIDTHS = {"wide": 976.0, "medium": 620.0, "narrow": 322.0}
# A limit further from the baseline than this share of its accuracy would squeeze the points together.
_LIMIT_SHARE = 0.03


def accuracy_chart(report: Report) -> Html | None:
    """Accuracy versus latency, of a decoder that of a new token: who is both fast and right."""
    tokens, decimals = reference_tokens(report), accuracy_decimals(report)
    points, missing = [], []
    for row in all_series(report):
        x = token_milliseconds(row) if writes(report) else figure(row.latency(tokens), "p50_ms")
        y = accuracy(report, row)
        if x is None or y is None:
            missing.append(f"{row.name} ({'failed' if row.status == 'failed' else 'not measured here'})")
        else:
            points.append(Point(row.label, x, y, _point_tip(report, row), _kind(row)))
    if not points:
        return None
    # What does not show in the figures does not decide: nobody is "more accurate" in the seventh decimal.
    falls = lower_is_better(report)
    front = pareto_front([(round(point.x, 2), round(-point.y if falls else point.y, decimals)) for point in points])
    on_front = [points[index].label for index in front]
    title = f"{_accuracy_name(report)} and latency of every variant"
    description = f"On the Pareto front: {', '.join(on_front)}. " + "; ".join(
        point.tip.replace("\n", ", ") for point in points
    )
    cost = "Milliseconds a token, one request" if writes(report) else f"Latency p50, ms, one text of {tokens} tokens"
    axes = (
        AxisText(cost, "lower is better"),
        AxisText(_axis_title(report), f"{'lower' if falls else 'higher'} is better", _ceiling(report), falls),
    )

    trials = _trial_points(report)

    def draw(name: str, width: float) -> Html:
        size = (width, min(420.0, 270 + 0.2 * width))
        return scatter_chart(name, title, description, points, front, axes, size, _drop_limit(report), trials)

    below = [_scatter_legend(report, points, front)]
    if missing:
        below.append(element("p", f"Not in this chart: {', '.join(missing)}.", class_="remark"))
    if trials:
        below.append(element("p", _TRIALS, class_="remark"))
    return _figure("accuracy-chart", draw, below)


_TRIALS = (
    "Small dots are graphs that the search tried: accuracy as the drop on its part of the evaluation, latency as the "
    "speed against float32. Those at the lower edge lose more than the chart shows."
)


def _trial_points(report: Report) -> list[Point]:
    """The trials of the search, placed by what they lose and gain against float32."""
    baseline = baseline_series(report)
    reached = baseline.figure("accuracy") if baseline else None
    plain = next((row for row in all_series(report) if row.name == "fp32"), None)
    if plain is None or reached is None:
        return []
    tokens = reference_tokens(report)
    latency = token_milliseconds(plain) if writes(report) else figure(plain.latency(tokens), "p50_ms")
    points = []
    for trial in part(report, "search").get("trials") or []:
        speed, drop = figure(trial, "speedup"), figure(trial, "drop")
        if latency is None or not speed or drop is None:
            continue
        y = reached * (1 + drop / 100) if lower_is_better(report) else reached - drop
        lines = (f"Trial {trial.get('name')}", f"Drop {fixed(drop, 2)}", f"{number(speed, 2)} times float32's speed")
        points.append(Point(str(trial.get("name")), latency / speed, y, "\n".join(lines), "other"))
    return points


def latency_chart(report: Report) -> Html | None:
    """Median and 95th percentile for every length; of a decoder those of the first token, and its prompts' rate."""
    rows = all_series(report)
    lengths = sorted({length for row in rows for length in row.lengths()})
    panels = []
    for tokens in lengths:
        bars = [
            _bar(
                row,
                figure(row.latency(tokens), "p50_ms"),
                f"{row.name}, {tokens} tokens\n{_latency_tip(row, tokens)}",
                upper=figure(row.latency(tokens), "p95_ms"),
            )
            for row in _timed(rows)
        ]
        panels.append(Panel(f"{tokens} tokens", bars))
    if not panels:
        return None
    prompts = [head("Prompt", "tokens/s", numeric=True)] if writes(report) else []
    headings = [head("Tokens", numeric=True), head("Variant")]
    headings += [head(name, "ms", numeric=True) for name in ("p50", "p95", "p99")] + [head("Samples", numeric=True)]
    headings += prompts
    table_rows = [
        element(
            "tr",
            cell(tokens),
            row_head(row.label),
            *(cell(number(figure(row.latency(tokens), key), 2)) for key in ("p50_ms", "p95_ms", "p99_ms")),
            cell(number(figure(row.latency(tokens), "samples"), 0)),
            *(cell(significant(figure(row.latency(tokens), "tokens_per_second"))) for _ in prompts),
        )
        for tokens in lengths
        for row in _timed(rows)
    ]
    title = "Time to the first token" if writes(report) else "Latency"
    return bar_figure("latency-chart", f"{title} in milliseconds", panels, table(title, headings, table_rows))


def throughput_chart(report: Report) -> Html | None:
    """Texts, or new tokens, a second for every batch size."""
    rows, unit = all_series(report), "tokens/s" if writes(report) else "texts/s"
    batches = sorted({batch for row in rows for batch in row.batches()})
    panels = []
    for batch in batches:
        rates = [(row, row.throughput(batch)) for row in _timed(rows)]
        panels.append(
            Panel(
                f"Batch {batch}",
                [_bar(row, rate, f"{row.name}, batch {batch}\n{significant(rate)} {unit}") for row, rate in rates],
            )
        )
    if not panels:
        return None
    headings = [head("Variant"), *(head(f"Batch {batch}", unit, numeric=True) for batch in batches)]
    table_rows = [
        element("tr", row_head(row.label), *(cell(significant(row.throughput(batch))) for batch in batches))
        for row in _timed(rows)
    ]
    figures = table("Throughput", headings, table_rows)
    title = f"Throughput in {'new tokens' if writes(report) else 'texts'} a second"
    return bar_figure("throughput-chart", title, panels, figures, shared_scale=True)


def memory_chart(report: Report) -> Html | None:
    """What a variant costs before it answers: memory, disk, start."""
    rows = [row for row in all_series(report) if row.status != "failed"]
    panels = []
    for title, key, unit, decimals in (
        ("Peak memory, MB", "peak_memory_bytes", "MB", 0),
        ("Size on disk, MB", "size_bytes", "MB", 1),
        ("Cold start, s", "cold_start_seconds", "s", 2),
    ):
        values = [megabytes(row.figure(key)) if unit == "MB" else row.figure(key) for row in rows]
        if any(value is not None for value in values):
            bars = [
                _bar(row, value, f"{row.name}\n{title.split(',')[0]} {number(value, decimals)} {unit}", decimals)
                for row, value in zip(rows, values, strict=True)
            ]
            panels.append(Panel(title, bars))
    if not panels:
        return None
    return bar_figure("memory-chart", "Peak memory, size on disk and cold start", panels, None)


def bar_figure(
    name: str, title: str, panels: Sequence[Panel], figures: Html | None, *, shared_scale: bool = False
) -> Html:
    """A chart of bars in panels, with its figures as a table below where there is one."""
    description = ". ".join(
        f"{panel.title}: " + "; ".join(bar.tip.replace("\n", ", ") for bar in panel.bars) for panel in panels
    )

    def draw(name: str, width: float) -> Html:
        return bar_chart(name, title, description, panels, width, shared_scale=shared_scale)

    folded = element("details", element("summary", "The figures as a table"), figures) if figures else None
    return _figure(name, draw, folded)


def _figure(name: str, draw: Callable[[str, float], Html], below: object) -> Html:
    drawn = [element("div", draw(f"{name}-{size}", width), class_=size) for size, width in _WIDTHS.items()]
    return element("figure", drawn, below, id=name)


def _bar(row: Series, value: float | None, tip: str, decimals: int | None = None, upper: float | None = None) -> Bar:
    shown = significant(value) if decimals is None else number(value, decimals)
    return Bar(row.name, value, "not measured" if value is None else shown, tip, _kind(row), upper)


def _kind(row: Series) -> Kind:
    return "baseline" if row.is_baseline else "default" if row.default else "other"


def _timed(rows: Sequence[Series]) -> list[Series]:
    """Those that ran: a variant that failed or whose kernels are missing has no time."""
    return [row for row in rows if row.lengths() or row.batches()]


def _latency_tip(row: Series, tokens: int | None) -> str:
    figures = row.latency(tokens)
    return " · ".join(
        f"{key} {number(figure(figures, f'{key}_ms'), 2)} ms"
        for key in ("p50", "p95", "p99")
        if figure(figures, f"{key}_ms") is not None
    )


def _point_tip(report: Report, row: Series) -> str:
    lines = [row.label, f"{_accuracy_name(report)} {fixed(accuracy(report, row), accuracy_decimals(report))}"]
    latency = "First token" if writes(report) else "Latency"
    lines.append(f"{latency} {_latency_tip(row, reference_tokens(report))}")
    if writes(report):
        lines += [f"Batch {batch} {significant(row.throughput(batch))} tokens/s" for batch in sorted(row.batches())]
    elif (rate := row.best_throughput()) is not None:
        lines.append(f"Throughput {significant(rate)} texts/s")
    if (size := row.figure("size_bytes")) is not None:
        lines.append(f"Size {number(megabytes(size), 1)} MB")
    return "\n".join(lines)


def _accuracy_name(report: Report) -> str:
    return next((metric.title for metric in metrics(report)), "Agreement")


def _axis_title(report: Report) -> str:
    if not report.get("evaluation"):
        return f"Agreement with {reference(report)}"
    return capitalized(str(part(report, "evaluation").get("label") or _accuracy_name(report)))


def _ceiling(report: Report) -> float:
    """A cosine similarity ends at 1; of other metrics nothing is known."""
    return float("inf") if report.get("evaluation") else 1.0


def _drop_limit(report: Report) -> tuple[float, str] | None:
    """The least accuracy a variant had to reach, where it is near enough to be worth drawing."""
    baseline, allowed = baseline_series(report), figure(report, "max_accuracy_drop")
    reached = baseline.figure("accuracy") if baseline and report.get("evaluation") else None
    if reached is None or allowed is None:
        return None
    if lower_is_better(report):
        highest = reached * (1 + allowed / 100)
        return (
            None
            if allowed > 100 * _LIMIT_SHARE
            else (highest, f"highest accepted: {reference(report)} + {allowed:g} %")
        )
    if allowed > _LIMIT_SHARE * abs(reached):
        return None
    return reached - allowed, f"lowest accepted: {reference(report)} − {allowed:g}"


def _scatter_legend(report: Report, points: Sequence[Point], front: Sequence[int]) -> Html:
    """What the signs mean; only those that are in the chart."""
    kinds = {(point.kind, index in front) for index, point in enumerate(points)}
    entries = [
        (_sign("default", True), "default variant", any(kind == "default" for kind, _ in kinds)),
        (_sign("other", True), "on the Pareto front", ("other", True) in kinds),
        (
            _sign("other", False),
            "outdone: another is at least as good in both",
            any(kind != "baseline" and not on for kind, on in kinds),
        ),
        (
            _sign("baseline", ("baseline", True) in kinds),
            reference(report),
            any(kind == "baseline" for kind, _ in kinds),
        ),
        (_line_sign(), "Pareto front: nothing is both faster and more accurate", True),
    ]
    return element("ul", [element("li", sign, text) for sign, text, there in entries if there], class_="legend")


def _sign(kind: Kind, front: bool) -> Html:
    halo = element("circle", cx=12, cy=12, r=11, class_="halo") if kind == "default" else None
    path = element("path", d=point_path(kind, 12, 12), class_=f"point {kind}{' on-front' * front}")
    return element("svg", halo, path, viewBox="0 0 24 24", aria_hidden="true", class_="sign")


def _line_sign() -> Html:
    line = element("path", d="M1 17H13V7H23", class_="front")
    return element("svg", line, viewBox="0 0 24 24", aria_hidden="true", class_="sign")
