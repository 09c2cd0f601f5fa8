"""`onnxpress debug BUNDLE`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from onnxpress.cli.data import add_evaluation_arguments, evaluation_options

if TYPE_CHECKING:
    from onnxpress.exporter.debugging import Debugged, TensorError

HELP = "Show where a variant goes wrong: the error of every tensor, and the first node past a threshold."

_AROUND = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--variant", help="the variant to look at (default: the bundle's default)")
    parser.add_argument("--against", default="fp32", metavar="VARIANT", help="what it is compared with (default: fp32)")
    parser.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="a text to run; may be repeated (default, without --eval: those the bundle was verified on)",
    )
    add_evaluation_arguments(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="DB",
        help="signal over error in decibels below which a tensor is named (default: 20, an error of a tenth)",
    )
    parser.add_argument("--all", action="store_true", help="show every tensor")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compare two variants tensor by tensor."""
    try:
        from onnxpress.exporter.debugging import DEFAULT_THRESHOLD, debug
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "onnxpress":
            raise
        raise ImportError(
            f"onnxpress debug needs {error.name}, which is not installed: run pip install onnx, or pip install "
            "'onnxpress[export]', which brings it"
        ) from error
    from onnxpress.runtime.bundle import open_bundle

    found = debug(
        open_bundle(arguments.bundle),
        arguments.variant,
        arguments.against,
        texts=arguments.text or (),
        evaluation=tuple(map(Path, arguments.eval or ())),
        data=evaluation_options(arguments),
        threshold=DEFAULT_THRESHOLD if arguments.threshold is None else arguments.threshold,
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
    else:
        _show(found, arguments.all)
    return 0


def _show(found: Debugged, everything: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width
    rows = found.tensors if everything else _excerpt(found)
    if rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("SQNR dB", "error %"):
            table.add_column(name, justify="right")
        for name in ("operator", "module", "tensor"):
            table.add_column(name)
        for row in rows:
            style = "bold red" if row == found.first else "red" if row.is_past(found.threshold) else None
            table.add_row(*map(Text, _cells(row)), style=style)
        console.print(table)
    console.print(Text(_verdict(found)))


def _excerpt(found: Debugged) -> tuple[TensorError, ...]:
    """The first tensor past the threshold with its neighbours, and the last one, to which all others lead."""
    if found.first is None:
        return found.tensors[-1:]
    place = found.tensors.index(found.first)
    around = found.tensors[max(0, place - _AROUND) : place + _AROUND + 1]
    return around if found.tensors[-1] in around else (*around, found.tensors[-1])


def _cells(row: TensorError) -> tuple[str, ...]:
    operator = row.op_type if row.op_type == row.variant_op_type else f"{row.op_type} > {row.variant_op_type}"
    return (_decibels(row), _percent(row), operator, row.module or "-", row.tensor)


def _decibels(row: TensorError) -> str:
    if row.bad:
        return "not finite"
    return "equal" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"


def _percent(row: TensorError) -> str:
    return "-" if row.relative_rms is None else f"{100 * row.relative_rms:.3g}"


def _verdict(found: Debugged) -> str:
    count = f"{len(found.tensors)} tensors of {found.variant} and {found.against}, {found.runs} runs"
    if found.first is None:
        return f"no tensor is below {found.threshold:g} dB ({count})"
    row = found.first
    place = f" of {row.module}" if row.module else ""
    how = "has values that are not finite" if row.bad else f"is at {row.sqnr_db:.1f} dB"
    return f"first below {found.threshold:g} dB: {row.op_type} {row.node}{place} {how} ({count})"
