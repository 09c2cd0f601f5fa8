"""The tables of the report page: variants, passes, candidate forms, steps, nodes in float32. Parity: parity.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxpress.exporter.page.markup import Html, element, join
from onnxpress.exporter.page.values import (
    MISSING,
    Metric,
    Report,
    Series,
    accuracy,
    accuracy_decimals,
    accuracy_drop,
    all_series,
    changed_answers,
    drop_interval,
    figure,
    fixed,
    loss_unit,
    lower_is_better,
    megabytes,
    metrics,
    number,
    part,
    reference,
    reference_tokens,
    significant,
    writes,
)

_STATUS_SIGNS = {"passed": "✓", "failed": "✕", "unverified": "?", "reference": "◆"}
_MANY_NODES = 12

Row = Mapping[str, Any]


def table(
    caption: str, head: Sequence[Html], *bodies: Sequence[Html], class_: str | None = None, titled: bool = False
) -> Html:
    """A table in a box of its own that scrolls where the page is narrow; the page itself never does.

    Args:
        caption: what the table is, seen only if `titled`: most stand below a heading that says the same.
        head: its headings.
        bodies: groups of rows.
        class_: for report.css.
        titled: whether the caption is seen.
    """
    inside = element(
        "table",
        element("caption", caption, class_=None if titled else "unseen"),
        element("thead", element("tr", *head)),
        *(element("tbody", *rows) for rows in bodies),
        class_=class_,
    )
    return element("div", inside, class_="scroll", role="region", aria_label=caption, tabindex=0)


def head(title: str, unit: str | None = None, *, numeric: bool = False) -> Html:
    """A column's heading, its unit below it."""
    below = element("span", unit, class_="unit") if unit else None
    return element("th", title, below, scope="col", class_="num" if numeric else None)


def row_head(*children: object) -> Html:
    """A row's heading."""
    return element("th", *children, scope="row")


def cell(value: object) -> Html:
    """A figure."""
    return element("td", value, class_="num")


def status_badge(status: str) -> Html:
    """A status as sign, word and colour."""
    known = status if status in _STATUS_SIGNS else "unverified"
    sign = element("span", _STATUS_SIGNS[known], aria_hidden="true", class_="sign")
    return element("span", sign, status, class_=f"status {known}")


def variant_name(row: Series) -> Html:
    """A name, marked if it is the default."""
    mark = element("span", "default", class_="default-mark") if row.default else None
    return join([element("bdi", row.name), " " if mark else None, mark])


Column = tuple[Html, Callable[[Series], str | Html]]
"""Its heading, and what reads the figure of a row."""


def variants_table(report: Report) -> Html:
    """Every variant and the baseline, with all figures; failed variants with the reason instead."""
    columns = [*_accuracy_columns(report), *_cost_columns(report)]
    rows = []
    for row in all_series(report):
        if row.status == "failed":
            reason = row.data.get("failure") or "no reason was recorded"
            cells = [element("td", "Not in the bundle: ", reason, colspan=len(columns), class_="reason")]
        else:
            cells = [cell(shown) for shown in (read(row) for _, read in columns)]
        names = " ".join(["default"] * row.default + ["reference"] * row.is_baseline)
        first = [row_head(variant_name(row)), element("td", status_badge(row.status))]
        rows.append(element("tr", *first, *cells, class_=names or None))
    headings = [head("Variant"), head("Status"), *(heading for heading, _ in columns)]
    return table(f"All variants and {reference(report)}", headings, rows, class_="variants")


def _accuracy_columns(report: Report) -> list[Column]:
    """The figures of the evaluation or, without one, the agreement."""
    decimals = accuracy_decimals(report)
    if not report.get("evaluation"):
        return [(head("Agreement", "mean cosine", numeric=True), lambda row: fixed(accuracy(report, row), decimals))]
    allowed = figure(report, "max_accuracy_drop")
    unit, drop_title = loss_unit(report), "Rise" if lower_is_better(report) else "Drop"
    most = unit if allowed is None else f"{unit}, at\N{NO-BREAK SPACE}most\N{NO-BREAK SPACE}{allowed:g}"

    def metric_column(metric: Metric) -> Column:
        return head(metric.title, metric.unit, numeric=True), lambda row: fixed(row.metric(metric), decimals)

    primary, *others = metrics(report)
    if any(drop_interval(report, row) for row in all_series(report)):
        most += ", with its 95\N{NO-BREAK SPACE}% interval"

    def shown_drop(row: Series) -> Html:
        lost, interval = fixed(accuracy_drop(report, row), decimals), drop_interval(report, row)
        ends = interval and " to ".join(fixed(end, decimals) for end in interval)
        return join([lost, element("span", ends, class_="unit") if ends else None])

    drop: Column = head(drop_title, most, numeric=True), shown_drop
    columns = [metric_column(primary), drop, *map(metric_column, others)]
    if any(changed_answers(report, row) for row in all_series(report)):
        samples = figure(part(report, "evaluation"), "samples") or 0.0
        heading = head("Changed answers", f"of {samples:,.0f}", numeric=True)
        columns.append((heading, lambda row: number(row.figure("changed_answers"), 0)))
    return columns


def _cost_columns(report: Report) -> list[Column]:
    """Time, memory and size."""
    return [
        *(_writing_columns(report) if writes(report) else _reading_columns(report)),
        (head("Peak memory", "MB", numeric=True), lambda row: number(megabytes(row.figure("peak_memory_bytes")), 0)),
        (head("Cold start", "s", numeric=True), lambda row: number(row.figure("cold_start_seconds"), 2)),
        (head("Size", "MB", numeric=True), lambda row: number(megabytes(row.figure("size_bytes")), 1)),
    ]


def _writing_columns(report: Report) -> list[Column]:
    """Of a decoder: its prompts, the wait for the first token, new tokens alone and together."""
    tokens = reference_tokens(report)
    length = f"{tokens}\N{NO-BREAK SPACE}tokens" if tokens else "prompt"

    def first(key: str) -> Callable[[Series], str]:
        return lambda row: significant(figure(row.latency(tokens), key))

    def rate(batch: int) -> Callable[[Series], str]:
        return lambda row: significant(row.throughput(batch))

    batches = sorted({batch for row in all_series(report) for batch in row.batches()})
    together = [f"{batch} requests" if batch > 1 else "One request" for batch in batches]
    return [
        (head("Prompt", f"tokens/s, {length}", numeric=True), first("tokens_per_second")),
        (head("First token", f"ms, {length}", numeric=True), first("p50_ms")),
        *((head(name, "new tokens/s", numeric=True), rate(n)) for n, name in zip(batches, together, strict=True)),
    ]


def _reading_columns(report: Report) -> list[Column]:
    tokens = reference_tokens(report)
    length = f"ms, {tokens}\N{NO-BREAK SPACE}tokens" if tokens else "ms"
    rate = "texts/s, best\N{NO-BREAK SPACE}batch"
    return [
        (head("Latency p50", length, numeric=True), lambda row: number(figure(row.latency(tokens), "p50_ms"), 2)),
        (head("Throughput", rate, numeric=True), lambda row: significant(row.best_throughput())),
    ]


def definitions(facts: Sequence[tuple[str, object]]) -> Html:
    """Facts as a list of names and values."""
    return element("dl", [element("div", element("dt", name), element("dd", value)) for name, value in facts])


def passes_table(report: Report) -> Html | None:
    """What each pass did to the graph; a pass that several variants share is listed once."""
    rows = []
    for entry, names in _shared(report, "passes"):
        before, after = figure(entry, "nodes_before"), figure(entry, "nodes_after")
        change = None if before is None or after is None else after - before
        counted = part(entry, "counts")
        counts = [
            element("li", element("span", number(figure(counted, name), 0), class_="count"), " ", name)
            for name in counted
        ]
        rows.append(
            element(
                "tr",
                row_head(entry.get("name")),
                element("td", element("bdi", ", ".join(names))),
                element("td", entry.get("summary")),
                *(cell(number(value, 0)) for value in (before, after)),
                cell(MISSING if change is None else f"{change:+,.0f}".replace("-", "−").replace("+0", "0")),
                element("td", element("ul", counts, class_="counts") if counts else MISSING),
            )
        )
    headings = [head("Pass"), head("In variants"), head("What it did")]
    headings += [head("Nodes", word, numeric=True) for word in ("before", "after", "change")]
    headings.append(head("Operators", "added or fused"))
    return table("Passes over the graph", headings, rows, class_="passes") if rows else None


def candidates_tables(report: Report) -> list[Html]:
    """Forms of a graph that were timed against each other, and the one that was taken."""
    tables = []
    for names, candidates in _candidate_sets(report):
        times = [figure(entry, "milliseconds") for entry in candidates]
        longest = max((time for time in times if time is not None), default=0.0)
        errors = [figure(entry, "error") for entry in candidates]
        compared = any(error is not None for error in errors)
        rows = []
        for entry, time, error in zip(candidates, times, errors, strict=True):
            chosen = bool(entry.get("chosen"))
            mark = element("span", "chosen", class_="default-mark") if chosen else None
            rows.append(
                element(
                    "tr",
                    row_head(entry.get("name"), " " if mark else None, mark),
                    element("td", _small_bar(time, longest, chosen)),
                    cell("not timed" if time is None else number(time, 2)),
                    cell(MISSING if error is None else number(error, 3)) if compared else None,
                    class_="default" if chosen else None,
                )
            )
        headings = [head("Form"), element("td"), head("Time", "ms", numeric=True)]
        if compared:
            headings.append(head("Error", "rms", numeric=True))
        tables.append(table(f"Forms tried for {', '.join(names)}", headings, rows, class_="bars", titled=True))
    return tables


def steps_table(report: Report) -> Html | None:
    """Where the time of the export went."""
    steps = report.get("steps") or []
    times = [figure(step, "seconds") for step in steps]
    longest = max((time for time in times if time is not None), default=0.0)
    rows = []
    for step, time in zip(steps, times, strict=True):
        cached = element("span", "from the cache", class_="unit-inline") if step.get("cached") else None
        first = row_head(step.get("name"), " " if cached else None, cached)
        rows.append(element("tr", first, element("td", _small_bar(time, longest, False)), cell(number(time, 2))))
    total = number(sum(time for time in times if time is not None), 2)
    last = element("tr", row_head("All steps"), element("td"), cell(total), class_="total")
    headings = [head("Step"), element("td"), head("Time", "s", numeric=True)]
    if not rows:
        return None
    return table("Time each step of the export took", headings, rows, [last], class_="bars", titled=True)


def _small_bar(value: float | None, longest: float, strong: bool) -> Html | None:
    """A bar beside a figure that is written out, so screen readers may pass over it."""
    if value is None or longest <= 0:
        return None
    bar = element(
        "rect", width=max(0.5, 100 * value / longest), height=8, class_="bar default" if strong else "bar other"
    )
    return element("svg", bar, viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true", class_="small-bar")


def _shared(report: Report, key: str) -> list[tuple[Row, list[str]]]:
    """Equal entries of all variants together, with the names of the variants that have them."""
    found: list[tuple[Row, list[str]]] = []
    for row in all_series(report):
        for entry in row.data.get(key) or []:
            names = next((names for known, names in found if known == entry and row.name not in names), None)
            if names is None:
                found.append((entry, [row.name]))
            else:
                names.append(row.name)
    return found


def _candidate_sets(report: Report) -> list[tuple[list[str], Sequence[Row]]]:
    sets: list[tuple[list[str], Sequence[Row]]] = []
    for row in all_series(report):
        candidates = row.data.get("candidates") or []
        names = next((names for names, known in sets if known == candidates), None)
        if names is not None:
            names.append(row.name)
        elif candidates:
            sets.append(([row.name], candidates))
    return sets


def float32_lists(report: Report) -> list[Html]:
    """Nodes that a variant keeps in float32, folded away where they are many."""
    blocks = []
    for row in all_series(report):
        nodes = row.data.get("float32_nodes") or []
        if not nodes:
            continue
        listed = element("ul", [element("li", element("code", node)) for node in nodes], class_="nodes")
        title = [element("bdi", row.name), f": {len(nodes):,} node{'s' * (len(nodes) != 1)}"]
        if len(nodes) > _MANY_NODES:
            blocks.append(element("details", element("summary", *title), listed))
        else:
            blocks.append(element("div", element("h3", *title), listed))
    return blocks


def notes_list(report: Report) -> Html | None:
    """What the pipeline has to say about the model and about single variants."""
    model = part(report, "model").get("notes") or []
    facts = [("model", [element("p", note) for note in model])] if model else []
    facts += [
        (row.name, [element("p", note) for note in row.data.get("notes") or []])
        for row in all_series(report)
        if row.data.get("notes")
    ]
    return definitions(facts) if facts else None
