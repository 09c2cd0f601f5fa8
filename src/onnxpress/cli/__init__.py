"""The command `onnxpress`: a thin front that parses, calls one function and turns errors into a sentence.

Each subcommand is a module of this package with `HELP`, `add_arguments(parser)` and `run(arguments) -> int`. Only the
one that is used is imported beyond its argument definitions, so `onnxpress --help` stays quick.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import onnxpress
from onnxpress.cli import bench, chat, compare, debug, doctor, export, inspect, report, run, serve, tune, verify
from onnxpress.runtime.errors import OnnxpressError

COMMANDS = {
    "export": export,
    "run": run,
    "chat": chat,
    "serve": serve,
    "inspect": inspect,
    "report": report,
    "verify": verify,
    "bench": bench,
    "tune": tune,
    "compare": compare,
    "debug": debug,
    "doctor": doctor,
}
INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; docs/cli.md is generated from it."""
    parser = argparse.ArgumentParser(
        prog="onnxpress",
        description="Press Hugging Face models into verified ONNX bundles and serve them without PyTorch.",
    )
    parser.add_argument("--version", action="version", version=f"onnxpress {onnxpress.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        child = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(child)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 1 (nothing passed the gate), 2 (bad input) or 130 (Ctrl-C)."""
    parsed = make_parser().parse_args(arguments)
    # Commands say themselves what the log says for programs; without a handler Python would write that, too.
    logging.getLogger("onnxpress").addHandler(logging.NullHandler())
    try:
        status: int = COMMANDS[parsed.command].run(parsed)
        return status
    except OnnxpressError as error:
        print(f"onnxpress: {error}", file=sys.stderr)
        return error.exit_status
    except ImportError as error:
        # A missing extra is the user's to install; anything else that cannot be imported is shown in full.
        if "onnxpress[" not in str(error):
            raise
        print(f"onnxpress: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onnxpress: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`onnxpress run ... | head`); what is still buffered for it must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
