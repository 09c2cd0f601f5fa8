"""A comparison of models (docs/comparing.md) as one page that opens without a network, in the style of the report.

    render_comparison(document)

Its charts are the report's: the base is drawn as the baseline, the other sides as variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxpress.exporter.page import figures, tables
from onnxpress.exporter.page.markup import Html, element, join
from onnxpress.exporter.page.shell import footer, section, whole_page
from onnxpress.exporter.page.values import moment, part
from onnxpress.runtime.comparing.summary import compared_on, found_text, outcome_text, summary_lines

Document = Mapping[str, Any]


def render_comparison(document: Document) -> str:
    """The whole page.

    Args:
        document: what `onnxpress.runtime.comparing.compare` gave.
    """
    base = document["sides"][0]["name"]
    report = _as_report(document)
    charts = [
        section("Accuracy versus latency", "Up and to the left is better.", [figures.accuracy_chart(report)]),
        section("Latency", "Milliseconds; the bar is the median, the whisker ends at the 95th percentile.",
                [figures.latency_chart(report)]),
        section("Throughput", "Tokenization included. All batch sizes share one scale.",
                [figures.throughput_chart(report)]),
        section("Memory, size and start", None, [figures.memory_chart(report)]),
    ]  # fmt: skip
    main = [
        _header(document, base),
        section("Side by side", _lead(document), [_side_by_side(document)]),
        section("Rules", "What --fail-on asked for.", [_rules(document)]),
        *(section(f"Changed answers of {row['name']}", _changed(row), [_examples(base, row)], anchor=f"changed-{index}")
          for index, row in enumerate(document["sides"][1:]) if row["examples"]),
        *charts,
        section("Machine", None, [_machine(document)]),
    ]  # fmt: skip
    return whole_page(f"{base} compared", main, footer(document, "onnxpress compare --json"))


def _header(document: Document, base: str) -> Html:
    others = [element("strong", element("bdi", row["name"])) for row in document["sides"][1:]]
    listed: list[object] = []
    for index, name in enumerate(others):
        listed += [" and " if index == len(others) - 1 else ", "] * (index > 0) + [name]
    facts = [document["task"], compared_on(document), moment(document["created"])]
    failed = [outcome for outcome in document["rules"] if not outcome["passed"]]
    return element(
        "header",
        element("p", "onnxpress comparison", class_="eyebrow"),
        element("h1", element("bdi", base)),
        element("p", "Compared with ", listed, ".", class_="verdict"),
        element("p", join(element("span", fact) for fact in facts), class_="facts"),
        [element("p", tables.status_badge("failed"), " ", outcome_text(one), class_="alert") for one in failed],
    )


def _lead(document: Document) -> str:
    interval = "In parentheses the 95 % interval of the difference, by paired bootstrap over the examples. "
    return f"{interval if document['evaluation'] else ''}Divergence: {document['divergence_is']}."


def _side_by_side(document: Document) -> Html:
    names = (tables.head(row["name"], "base" if index == 0 else None, numeric=True)
             for index, row in enumerate(document["sides"]))  # fmt: skip
    rows = [
        element(
            "tr",
            tables.row_head(line.title),
            *(
                tables.cell([figure, element("span", change, class_="unit") if change else None])
                for figure, change in line.cells
            ),
        )
        for line in summary_lines(document)
    ]
    return tables.table("Every figure of every side", [tables.head("Figure"), *names], rows)


def _rules(document: Document) -> Html | None:
    rows = [
        element(
            "tr",
            tables.row_head(outcome["rule"]),
            element("td", element("bdi", outcome["side"])),
            tables.cell(found_text(outcome)),
            element("td", tables.status_badge("passed" if outcome["passed"] else "failed")),
        )
        for outcome in document["rules"]
    ]
    headings = [
        tables.head("Fails if"),
        tables.head("Side"),
        tables.head("Found", numeric=True),
        tables.head("Verdict"),
    ]
    return tables.table("Rules", headings, rows) if rows else None


def _changed(row: Mapping[str, Any]) -> str:
    shown, all_of_them = len(row["examples"]), row["changed_answers"]
    return f"The first {shown} of {all_of_them:,}, the worst first." if shown < all_of_them else f"All {shown}."


def _examples(base: str, row: Mapping[str, Any]) -> Html:
    known = any(change["right"] is not None for change in row["examples"])
    rows = [
        element(
            "tr",
            tables.row_head([element("p", element("bdi", text), class_="example") for text in change["texts"]]),
            element("td", element("bdi", change["right"] or "")) if known else None,
            element("td", element("bdi", change["before"])),
            element("td", element("bdi", change["after"]), class_="failed" if change["gain"] < 0 else None),
        )
        for change in row["examples"]
    ]
    headings = [
        tables.head("Text"),
        tables.head("Right") if known else None,
        tables.head(base),
        tables.head(row["name"]),
    ]
    return tables.table("Changed answers", [heading for heading in headings if heading], rows, class_="examples")


def _machine(document: Document) -> Html:
    machine, measured = part(document, "machine"), part(document, "measurement")
    facts = [("CPU", machine.get("cpu")), ("Threads", machine.get("threads"))]
    if measured:
        facts.append(("Measured", f"{measured['mode']}, {measured['rounds']} rounds, all sides in turn"))
    facts += [(name, version) for name, version in part(document, "versions").items()]
    return tables.definitions(facts)


def _as_report(document: Document) -> dict[str, Any]:
    """The comparison in the form of a report, as far as charts read it."""
    base, *others = document["sides"]
    return {
        "model": {"task": document["task"]},
        "evaluation": document["evaluation"],
        "measurement": document["measurement"],
        "baseline": base,
        "variants": [row | {"status": "passed"} for row in others],
    }
