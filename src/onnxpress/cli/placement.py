"""What `onnxpress inspect --placement` shows: a row for each provider, and what fell to the CPU."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.runtime.providers import Placement

_MOST_NAMES = 30


def show_placement(placement: Placement, as_json: bool) -> None:
    """Print a placement for people, or all of it as JSON."""
    if as_json:
        counted = {"counts": placement.counts, "on_cpu": [node.name for node in placement.on_cpu]}
        print(json.dumps(dataclasses.asdict(placement) | counted, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a pipe has no width
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, justify in (("provider", "left"), ("nodes", "right"), ("parts", "right"), ("operators", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "operators")  # type: ignore[arg-type]
    for provider, count in placement.counts.items():
        operators = ", ".join(f"{op_type} {number}" for op_type, number in placement.operators(provider).items())
        table.add_row(provider, str(count), str(placement.parts.get(provider, 0)), Text(operators or "-"))
    console.print(table)
    for line in _verdict(placement):
        console.print(Text(line))


def _verdict(placement: Placement) -> list[str]:
    total = f"{len(placement.nodes)} nodes of {placement.variant}"
    fallen = placement.on_cpu
    if not fallen:
        return [
            f"{total}, none fell to the CPU"
            if placement.leader != "CPUExecutionProvider"
            else f"{total}, all on the CPU"
        ]
    lines = [f"{len(fallen)} of {total} fell to the CPU while {placement.leader} leads:"]
    lines += [f"  {node.op_type}  {node.name}" for node in fallen[:_MOST_NAMES]]
    if len(fallen) > _MOST_NAMES:
        lines.append(f"  and {len(fallen) - _MOST_NAMES} more, which --json names")
    return lines
