"""A comparison on the terminal: the figures side by side, then the answers that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxpress.runtime.comparing.summary import compared_on, summary_lines

_TEXT_WIDTH = 100


def show_comparison(document: Mapping[str, Any]) -> None:
    """Print it to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width
    base, *others = document["sides"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(Text(document["task"]))
    for row in document["sides"]:
        table.add_column(Text(_short(row["name"])), justify="right")
    for line in summary_lines(document):
        table.add_row(Text(line.title), *(Text("  ".join(filter(None, cell))) for cell in line.cells))
    console.print(table)
    console.print(Text(f"compared on {compared_on(document)}; changes are against {_short(base['name'])}", style="dim"))
    for row in others:
        if row["examples"]:
            console.print(
                Text(f"\n{_short(row['name'])}: {len(row['examples'])} of {row['changed_answers']} changed answers")
            )
            for change in row["examples"]:
                _show_change(console, base["name"], row["name"], change)


def _show_change(console: Console, before: str, after: str, change: Mapping[str, Any]) -> None:
    console.print(Text(f"  {change['index'] + 1}: {_short(' / '.join(change['texts']))}", style="bold"))
    known = [("right", change["right"])] if change["right"] is not None else []
    for name, answer in (*known, (before, change["before"]), (after, change["after"])):
        console.print(Text(f"     {_short(name)}: {_short(answer)}"))


def _short(text: str) -> str:
    """One line without control characters, which could move the cursor of the terminal."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= _TEXT_WIDTH else f"{line[: _TEXT_WIDTH - 1]}…"
