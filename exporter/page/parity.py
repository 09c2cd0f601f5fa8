"""The parity table of the report page, and where variants that failed first went wrong.

What is compared, and in which units: runtime/verification.py.
"""

from __future__ import annotations

from onnxpress.exporter.page.markup import Html, element
from onnxpress.exporter.page.tables import Row, cell, definitions, head, row_head, table, variant_name
from onnxpress.exporter.page.values import (
    MISSING,
    Report,
    Series,
    all_series,
    compares_logits,
    figure,
    fixed,
    part,
    reference,
    scientific,
)


def parity_lead(report: Report) -> str:
    """What the table shows, in words."""
    name = reference(report)
    computed = "PyTorch in float32" if name == "PyTorch" else name
    second = "the lowest cosine similarity"
    if compares_logits(report):
        second = "the root mean square (RMS) error of the logits, in units of their own RMS where that is above 1"
    return (
        f"Every variant computes the same inputs as {computed} does. In each field, the largest difference stands "
        f"above {second}; the one that decides is in bold. A variant that fails a case is not in the bundle."
    )


def parity_table(report: Report) -> Html | None:
    """Cases down, variants across: how far each output was from the baseline's. None if nothing was compared."""
    compared = [row for row in all_series(report) if part(row.data, "parity")]
    if not compared:
        return None
    results = [_cases(row) for row in compared]
    keys = list(dict.fromkeys(key for cases in results for key in cases))
    rows = [
        element(
            "tr",
            row_head(key[0]),
            *(_parity_cell(report, row, cases.get(key)) for row, cases in zip(compared, results, strict=True)),
        )
        for key in keys
    ]
    worst = [_figures_cell(report, part(row.data, "parity"), part(row.data, "parity")) for row in compared]
    last = element("tr", row_head("Worst of all cases"), *worst, class_="total")
    headings = [head("Case"), *(_parity_head(row) for row in compared)]
    second = "RMS error" if compares_logits(report) else "lowest cosine similarity"
    caption = f"Parity with {reference(report)}: largest difference, and below it the {second}"
    return table(caption, headings, rows, [last], class_="parity")


def _cases(row: Series) -> dict[tuple[str, int], Row]:
    """The cases of a variant under their names, numbered in case two are called the same."""
    cases: dict[tuple[str, int], Row] = {}
    for case in part(row.data, "parity").get("cases") or []:
        name, count = str(case.get("name")), 0
        while (name, count) in cases:
            count += 1
        cases[name, count] = case
    return cases


def _parity_head(row: Series) -> Html:
    parity = part(row.data, "parity")
    cases = parity.get("cases") or []
    passed = sum(bool(case.get("passed")) for case in cases)
    threshold = figure(parity, "threshold")
    plain = MISSING if threshold is None else f"{threshold:g}"
    bound: list[object]
    if parity.get("kind") == "max_abs":
        bound = [f"difference ≤ {scientific(threshold).replace('.0×', '×')} ×", element("br"), "max(1, max |output|)"]
    elif parity.get("kind") == "rms":
        bound = [f"RMS error ≤ {plain}"]
    else:
        bound = [f"cosine ≥ {plain}"]
    lines = [*bound, element("br"), f"{passed} of {len(cases)} passed"]
    return element("th", variant_name(row), element("span", *lines, class_="unit"), scope="col", class_="num")


def _parity_cell(report: Report, row: Series, case: Row | None) -> Html:
    if case is None:
        return cell(MISSING)
    passed = bool(case.get("passed"))
    notes = (["failed"] if not passed else []) + ([str(case["note"])] if case.get("note") else [])
    note = element("span", ": ".join(notes), class_="case-note") if notes else None
    return _figures_cell(report, part(row.data, "parity"), case, status_sign(passed), note, failed=not passed)


def status_sign(passed: bool) -> Html:
    """Passed or failed as a sign, with the word for those who cannot see it."""
    word = "passed" if passed else "failed"
    return element("span", "✓" if passed else "✕", element("span", f" {word}", class_="unseen"), class_=f"sign {word}")


def _figures_cell(report: Report, parity: Row, figures: Row, *more: Html | None, failed: bool = False) -> Html:
    """Difference above cosine or RMS error. The one the bound is about is the one that stands out."""
    by_difference = parity.get("kind") == "max_abs"
    difference = figure(figures, "max_abs_difference")
    if difference is None:  # a run without a usable output
        below = MISSING
    elif parity.get("kind") == "rms" or (by_difference and compares_logits(report)):
        below = scientific(figure(figures, "rms_error"))
    else:
        below = fixed(figure(figures, "min_cosine"), 6)
    sign, note = more if more else (None, None)
    first = element("span", scientific(difference), class_="decides" if by_difference else "beside")
    second = element("span", below, class_="beside" if by_difference else "decides")
    lines = [element("span", line, class_="line") for line in (first, second)]
    return element("td", sign, *lines, note, class_="num failed" if failed else "num")


def divergences(report: Report) -> list[Html]:
    """For every failed variant: why, and the first tensor that is not what it should be."""
    blocks = []
    for row in all_series(report):
        if row.status != "failed":
            continue
        found = part(part(row.data, "parity"), "first_divergence")
        facts = [
            (title, element("code", found[key]))
            for title, key in (
                ("First tensor that diverges", "tensor"),
                ("Operator", "op_type"),
                ("Node", "node"),
                ("PyTorch module", "module"),
            )
            if found.get(key)
        ]
        difference = figure(found, "difference")
        if found:
            shown = "not a finite number" if difference is None else scientific(difference)
            facts.append(("Difference, of the tensor’s largest magnitude", element("span", shown)))
        title = element("h3", element("bdi", row.name))
        reason = element("p", "Failed: ", row.data.get("failure") or "no reason was recorded")
        blocks.append(element("div", title, reason, definitions(facts) if facts else None, class_="failure"))
    return blocks
