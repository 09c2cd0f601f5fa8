"""`onnxpress compare A B [C ...]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.cli.data import add_evaluation_arguments, evaluation_options

if TYPE_CHECKING:
    from onnxpress.runtime.comparing import Side

HELP = "Compare bundles, variants and checkpoints on the same data: accuracy, agreement, cost, changed answers."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "sides",
        metavar="SIDE",
        nargs="+",
        help="a bundle, BUNDLE:variant, or a model as `onnxpress export` takes it; the first is what the others are "
        "compared with",
    )
    add_evaluation_arguments(parser)
    parser.add_argument("--measure", default="quick", help="how long to measure: quick, full or none (default: quick)")
    parser.add_argument("--threads", type=int, help="CPU threads of every side (default: the cores allowed)")
    parser.add_argument(
        "--examples", type=int, default=10, metavar="N", help="changed answers to show of each side (default: 10)"
    )
    parser.add_argument(
        "--fail-on",
        metavar="RULES",
        help='exit with 1 if a side changes too much, such as "accuracy<-0.5%%,latency>+10%%" (docs/comparing.md)',
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, in place of the table")
    parser.add_argument("--html", metavar="FILE", help="write a page with charts")
    parser.add_argument("--markdown", metavar="FILE", help="write a table for a pull request")
    parser.add_argument("--task", help="what a model that is no bundle is for (default: as the bundles)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with a model (default: never)"
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read weights stored as pickles where there are no safetensors"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Compare, and show it; status 1 if a rule fails."""
    from rich.console import Console
    from rich.markup import escape

    from onnxpress.runtime.comparing import Options, compare, parse_rules
    from onnxpress.runtime.comparing.summary import outcome_text

    options = Options(
        evaluation=tuple(map(Path, arguments.eval or ())),
        data=evaluation_options(arguments),
        measure=arguments.measure,
        threads=arguments.threads,
        examples=arguments.examples,
        rules=tuple(parse_rules(arguments.fail_on)) if arguments.fail_on is not None else (),
    )
    _check_outputs(arguments)
    sides = _sides(arguments)
    with Console(stderr=True, quiet=arguments.quiet).status("", refresh_per_second=2) as status:
        document = compare(sides, options, lambda detail: status.update(escape(detail)))
    _write(arguments, document)
    failed = [outcome for outcome in document["rules"] if not outcome["passed"]]
    for outcome in failed:
        print(f"onnxpress: {outcome_text(outcome)}", file=sys.stderr)
    return 1 if failed else 0


def _sides(arguments: argparse.Namespace) -> list[Side]:
    """What was named on the command line; models that are no bundles take the task of those that are."""
    from onnxpress.runtime.comparing import bundle_side

    found = [bundle_side(given) for given in arguments.sides]
    task = arguments.task or next((side.task for side in found if side is not None), None)
    return [side or _checkpoint(given, task, arguments) for given, side in zip(arguments.sides, found, strict=True)]


def _checkpoint(given: str, task: str | None, arguments: argparse.Namespace) -> Side:
    try:
        import torch  # noqa: F401

        from onnxpress.exporter.comparing import checkpoint_side
        from onnxpress.exporter.config import ExportConfig
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "onnxpress":
            raise
        raise ImportError(
            f"{given!r} is no bundle, and any other model is run in PyTorch, which needs {error.name}: check the "
            "name, or run pip install 'onnxpress[export]'"
        ) from error
    config = ExportConfig(task=task, trust_remote_code=arguments.trust_remote_code, allow_pickle=arguments.allow_pickle)
    return checkpoint_side(given, config)


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before minutes of measuring, not after."""
    from onnxpress.runtime.errors import InvalidInputError

    for path in (arguments.html, arguments.markdown):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise InvalidInputError(f"{path} cannot be written: there is no folder {Path(path).parent}")


def _write(arguments: argparse.Namespace, document: Mapping[str, Any]) -> None:
    from onnxpress.runtime.comparing.markdown import render_markdown

    if arguments.html:
        from onnxpress.exporter.page.comparison import render_comparison  # needs nothing that only an export has

        _save(arguments.html, render_comparison(document))
    if arguments.markdown:
        _save(arguments.markdown, render_markdown(document))
    if arguments.json:
        print(json.dumps(document))  # in ASCII: texts may hold what no encoding can write
    else:
        from onnxpress.cli.comparison_table import show_comparison

        show_comparison(document)


def _save(path: str, text: str) -> None:
    from onnxpress.runtime.errors import InvalidInputError

    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}") from error
