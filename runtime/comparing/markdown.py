"""A comparison as Markdown for a pull request: short, and inert whatever the models and texts are called.

Everything that others chose stands in code spans, in which nothing is markup, no name is mentioned and no link made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from onnxpress.runtime.comparing.summary import compared_on, outcome_text, summary_lines

_MOST_EXAMPLES = 5
_LENGTH = 120
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]+")


def render_markdown(document: Mapping[str, Any]) -> str:
    """The table of figures, the rules and a few changed answers.

    Args:
        document: what `compare` gave.
    """
    sides = document["sides"]
    parts = [f"### Comparison with {code(sides[0]['name'])}", _table(document)]
    parts.append(f"On {code(compared_on(document))}, on {code(document['machine']['cpu'])}.")
    if document["evaluation"]:
        parts.append("In parentheses: the 95 % interval of the difference (paired bootstrap).")
    if document["rules"]:
        parts.append("\n".join(_rule(outcome) for outcome in document["rules"]))
    parts += [_examples(sides[0]["name"], row) for row in sides[1:] if row["examples"]]
    return "\n\n".join(parts) + "\n"


def _table(document: Mapping[str, Any]) -> str:
    names = [code(row["name"]) for row in document["sides"]]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for line in summary_lines(document):
        cells = (f"{figure} {f'<sub>{change}</sub>' if change else ''}".strip() for figure, change in line.cells)
        lines.append(f"| {line.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rule(outcome: Mapping[str, Any]) -> str:
    return f"- {':white_check_mark:' if outcome['passed'] else ':x:'} {code(outcome_text(outcome))}"


def _examples(base: str, row: Mapping[str, Any]) -> str:
    shown = row["examples"][:_MOST_EXAMPLES]
    known = any(change["right"] is not None for change in shown)
    head = ["text", *(["right"] if known else []), base, row["name"]]
    lines = [f"| {' | '.join(map(code, head))} |", f"|{'---|' * len(head)}"]
    for change in shown:
        cells = [" / ".join(change["texts"]), *([change["right"] or ""] if known else [])]
        lines.append(f"| {' | '.join(map(code, [*cells, change['before'], change['after']]))} |")
    count = f"{len(shown)} of {row['changed_answers']}" if row["changed_answers"] > len(shown) else len(shown)
    title = f"<summary>{count} changed answers</summary>"
    return "\n".join(["<details>", title, "", *lines, "", "</details>"])


def code(value: object) -> str:
    """A text as a code span that fits a cell of a table, cut to a length."""
    text = " ".join(_CONTROL.sub(" ", str(value)).split()) or " "
    if len(text) > _LENGTH:
        text = text[: _LENGTH - 1] + "…"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    # A table's cell ends at a pipe in a code span too, unless a backslash stands before it.
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")
