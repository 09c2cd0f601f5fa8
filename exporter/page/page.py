"""report.html: everything measured and decided about a model as one page that opens without a network.

    render_report(json.loads(Path("report.json").read_text()))

The page is one file: styles, script and charts are inside it, and its content security policy lets nothing else in. Any
figure may be missing, any text may be hostile. It measures and decides nothing; what it shows is in the report
(docs/bundle.md). Its charts: figures.py. Its tables: tables.py and parity.py. How everything was measured: method.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxpress.exporter.page import figures, method, parity, search, tables
from onnxpress.exporter.page.markup import Html, element, join
from onnxpress.exporter.page.shell import footer, whole_page
from onnxpress.exporter.page.shell import section as _section
from onnxpress.exporter.page.values import (
    MISSING,
    Report,
    Series,
    accuracy_drop,
    all_series,
    baseline_series,
    capitalized,
    changed_answers,
    compares_logits,
    default_series,
    figure,
    loss_unit,
    lower_is_better,
    megabytes,
    metrics,
    moment,
    number,
    part,
    reference,
    reference_tokens,
    signed,
    significant,
    writes,
)


def render_report(report: Mapping[str, Any]) -> str:
    """The whole page for a report (schema_version 1)."""
    name = part(report, "model").get("name") or "Model"
    main = [_header(report), _sections(report)]
    return whole_page(f"{name}: onnxpress report", main, footer(report, "report.json beside this page"))


def _header(report: Report) -> Html:
    model = part(report, "model")
    return element(
        "header",
        element("p", "onnxpress report", class_="eyebrow"),
        element("h1", element("bdi", model.get("name") or "Model")),
        _verdict(report),
        element("p", _facts_line(report), class_="facts"),
        _alerts(report),
        _key_figures(report),
    )


def _verdict(report: Report) -> Html:
    default = default_series(report)
    if default is None:
        return element("p", "No variant was chosen as the default.", class_="verdict")
    reason = str(part(report, "default").get("reason") or "").strip().rstrip(".")
    name = element("strong", element("bdi", default.name))
    return element("p", name, " is the default", f": {reason}." if reason else ".", class_="verdict")


def _facts_line(report: Report) -> Html:
    """The model in a few words."""
    model = part(report, "model")
    parameters, dimension = figure(model, "parameters"), figure(model, "embedding_dimension")
    longest, labels = figure(model, "max_length"), model.get("labels") or []
    facts = [
        model.get("architecture"),
        model.get("task"),
        None if parameters is None else f"{significant(parameters / 1e6)} M parameters",
        None if dimension is None else f"{dimension:.0f} dimensions",
        f"{len(labels):,} labels" if len(labels) > 1 else None,
        None if longest is None else f"up to {longest:,.0f} tokens",
        f"target {report['target']}" if report.get("target") else None,
        moment(report["created"]) if report.get("created") else None,
    ]
    return join(element("span", fact) for fact in facts if fact)


def _alerts(report: Report) -> list[Html]:
    """What must not be overlooked: variants that are missing from the bundle or wait for their machine, and
    quantization that has seen no text."""
    rows = [row for row in all_series(report) if not row.is_baseline]
    alerts = []
    for status, sentence in (
        ("failed", "did not pass the gate and {is_are} not in the bundle"),
        ("unverified", "{is_are} in the bundle but unverified: this machine lacks the target’s kernels"),
    ):
        names = [row.name for row in rows if row.status == status]
        if names:
            text = sentence.format(is_are="is" if len(names) == 1 else "are")
            badge = tables.status_badge(status)
            listed = element("strong", element("bdi", ", ".join(names)))
            alerts.append(element("p", badge, " ", listed, f" {text} (of {len(rows)} variants).", class_="alert"))
    if (warning := method.synthetic_warning(report)) is not None:
        alerts.append(element("p", warning, class_="alert"))
    return alerts


def _key_figures(report: Report) -> Html:
    """The default against the baseline."""
    default, baseline = default_series(report), baseline_series(report)
    if default is None:
        return join([])
    tokens, name = reference_tokens(report), reference(report)
    unknown = f"{capitalized(name)} was not measured"

    def latency(row: Series) -> float | None:
        return figure(row.latency(tokens), "p50_ms")

    def memory(row: Series) -> float | None:
        return megabytes(row.figure("peak_memory_bytes"))

    def size(row: Series) -> float | None:
        return megabytes(row.figure("size_bytes"))

    def before(read: Callable[[Series], float | None]) -> float | None:
        return None if baseline is None else read(baseline)

    def rate(batch: int) -> Html:
        name = "One request" if batch == 1 else f"{batch} requests together"
        after, was = default.throughput(batch), before(lambda row: row.throughput(batch))
        return _speed_card(name, after, was, "tokens/s", unknown, higher=True)

    latency_title = "First token after" if writes(report) else "Latency,"
    if writes(report):
        rates = [rate(batch) for batch in sorted(default.batches()) or [1]]
    else:
        after, was = default.best_throughput(), before(Series.best_throughput)
        rates = [_speed_card("Throughput", after, was, "texts/s", unknown, higher=True)]
    cards = [
        *rates,
        _speed_card(
            f"{latency_title} {tokens or 'some'} tokens" if tokens or writes(report) else "Latency",
            latency(default),
            before(latency),
            "ms",
            unknown,
        ),
        _saving_card("Peak memory", memory(default), before(memory), 0, unknown),
        _saving_card("Size on disk", size(default), before(size), 1, unknown),
        _accuracy_card(report, default, baseline),
    ]
    title = element("h2", f"The default against {name}", class_="unseen")
    listed = element("dl", cards, class_="key six" if len(cards) == 6 else "key")
    return element("section", title, listed, id="key-figures")


def _card(title: str, value: str, *below: str) -> Html:
    absent = "figure absent" if value == MISSING else "figure"
    lines = [element("dd", line) for line in below]
    return element("div", element("dt", title), element("dd", value, class_=absent), *lines)


def _speed_card(
    title: str, after: float | None, before: float | None, unit: str, unknown: str, *, higher: bool = False
) -> Html:
    """How many times better: more texts a second, or fewer milliseconds; `unknown` where there is no `before`."""
    if after is None:
        return _card(title, MISSING, "not measured")
    if not before or not after:
        return _card(title, f"{significant(after)} {unit}", unknown)
    factor = after / before if higher else before / after
    word = "faster" if factor >= 1 else "slower"
    shown = f"{number(factor if factor >= 1 else 1 / factor, 1)}× {word}"
    return _card(title, shown, f"{significant(after)} against {significant(before)} {unit}")


def _saving_card(title: str, after: float | None, before: float | None, decimals: int, unknown: str) -> Html:
    if after is None:
        return _card(title, MISSING, "not measured")
    if not before:
        return _card(title, f"{number(after, decimals)} MB", unknown)
    change = f"{signed(100 * (after / before - 1), 0)} %"
    return _card(title, change, f"{number(after, decimals)} against {number(before, decimals)} MB")


def _accuracy_card(report: Report, default: Series, baseline: Series | None) -> Html:
    if not report.get("evaluation"):
        similarity = f"mean cosine similarity{' of logits' * compares_logits(report)}, 1 is equal"
        return _card(f"Agreement with {reference(report)}", number(default.figure("agreement"), 4), similarity)
    metric = metrics(report)[0]
    drop, after = accuracy_drop(report, default), default.figure("accuracy")
    before = baseline.figure("accuracy") if baseline else None
    if drop is None or before is None:
        return _card(metric.title, number(after, 2), str(part(report, "evaluation").get("label") or ""))
    below = [f"{number(after, 2)} against {number(before, 2)}"]
    if (changed := changed_answers(report, default)) is not None:
        below.append(f"{changed} answers changed")
    change = drop if lower_is_better(report) else -drop
    return _card(f"{metric.title} change", f"{signed(change, 2)} {loss_unit(report)}", *below)


def _sections(report: Report) -> list[Html | None]:
    writing = writes(report)
    up = "Up and to the left is better."
    return [
        _section(
            "Accuracy versus speed" if writing else "Accuracy versus latency",
            f"{up} Point at a mark, tap it, or reach it with the tab key for its figures.",
            [figures.accuracy_chart(report)],
            absent="Nothing to draw: no variant has both a latency and an accuracy.",
        ),
        _section(
            "Time to the first token" if writing else "Latency",
            f"Milliseconds for one {'prompt' if writing else 'text'}, tokenization included: the bar is the median "
            "(p50), the whisker ends at the 95th percentile. Each length has its own scale.",
            [figures.latency_chart(report)],
            absent="Latency was not measured.",
        ),
        _section(
            "Writing" if writing else "Throughput",
            _WRITING if writing else _READING,
            [figures.throughput_chart(report)],
            absent="Throughput was not measured.",
        ),
        _section(
            "Memory, size and start",
            "Cold start is the time from starting the process to the first answer.",
            [figures.memory_chart(report)],
            absent="Memory, size and cold start were not measured.",
        ),
        *_table_sections(report),
    ]


_READING = "Texts a second on texts of mixed lengths, tokenization included. All batch sizes share one scale."
_WRITING = (
    "New tokens a second of one request alone, and of several that run together in one batch; the time for their "
    "prompts is left out. All batch sizes share one scale."
)


_SENSITIVITY = (
    "How far the outputs go from float32 when one node alone has fewer bits: of logits the divergence of the "
    "probabilities in nats, of others the squared difference over the square. Nodes are named by their PyTorch "
    "modules; fp32 marks those that the accepted graph keeps in float32."
)


def _table_sections(report: Report) -> list[Html | None]:
    return [
        _section("All variants", None, [tables.variants_table(report)]),
        _section(
            "Search",
            search.search_lead(report),
            search.search_content(report),
            absent=part(report, "search").get("sentence"),
        ),
        _section("Sensitivity", _SENSITIVITY, search.sensitivity_charts(report)),
        _section(
            f"Parity with {reference(report)}",
            parity.parity_lead(report),
            [parity.parity_table(report), *parity.divergences(report)],
            absent="Nothing was compared.",
            anchor="parity",
        ),
        _section(
            "What each pass did",
            None,
            [tables.passes_table(report), *tables.candidates_tables(report)],
            absent="No pass was recorded.",
        ),
        _section(
            "Kept in float32",
            "Nodes that a variant computes in float32, because fewer bits would not do.",
            tables.float32_lists(report),
        ),
        _section("Notes", None, [tables.notes_list(report)]),
        _section(
            "How this was measured",
            method.method_lead(report),
            [method.method_facts(report), tables.steps_table(report)],
        ),
    ]
