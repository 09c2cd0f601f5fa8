"""What the programs share: bundles named on the command line, and errors as one sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import onnxpress
from onnxpress.runtime.errors import InvalidInputError

DATA = Path(__file__).parent / "data"
MODELS = Path("examples-models")
"""Where `make_models` puts bundles unless told otherwise."""


def make_parser(module: str, description: str | None, bundles: dict[str, str]) -> argparse.ArgumentParser:
    """
    Args:
        module: name of the program.
        description: its docstring, of which the first line is shown.
        bundles: an option for each: its name, and the task of the bundle.
    """
    first = (description or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=f"python -m examples.{module}", description=first)
    for name, task in bundles.items():
        parser.add_argument(f"--{name}", type=Path, metavar="BUNDLE", help=f"a bundle for {task}")
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", default=MODELS, help="where bundles lie that are not given"
    )
    return parser


def bundle_of(options: argparse.Namespace, name: str) -> Path:
    """The bundle that was given for an option, or the one that `make_models` made.

    Raises:
        InvalidInputError: there is neither.
    """
    given: Path | None = getattr(options, name)
    if given is None and not (options.models / name).is_dir():
        raise InvalidInputError(
            f"{options.models} has no bundle {name!r}; run python -m examples.make_models --output {options.models}, "
            f"or give a bundle with --{name}"
        )
    return given or options.models / name


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def run(program: Callable[[], None], name: str) -> int:
    """Run a program to its exit status; what is wrong becomes one sentence on stderr."""
    try:
        program()
    except onnxpress.OnnxpressError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_status
    except UnicodeDecodeError as error:
        print(f"{name}: stdin is not {error.encoding}: {error.reason} at byte {error.start}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`: nobody reads any more, and Python would say so once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
