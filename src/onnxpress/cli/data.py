"""Options that say what evaluation data is and how it is read, for every command that reads some."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.runtime.data.options import DataOptions


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Define --eval and the options that go with it."""
    parser.add_argument(
        "--eval",
        metavar="PATH",
        action="append",
        help="labelled examples of the task to measure accuracy on: a file, a folder of texts or a dataset "
        "(docs/evaluation.md); may be repeated",
    )
    parser.add_argument(
        "--eval-columns",
        metavar="MAP",
        help="columns that are not found by themselves: the task's name, =, the data's, as in text=review,label=stars",
    )
    parser.add_argument(
        "--eval-labels",
        metavar="MAP",
        help="labels that the model calls otherwise: the data's, =, the model's, as in 0=negative,1=positive",
    )
    parser.add_argument(
        "--eval-split",
        metavar="NAME",
        help="of a dataset with several (default: validation, else test, else train)",
    )
    parser.add_argument(
        "--eval-samples", type=int, metavar="N", help="examples to draw from all at most (default: 20,000)"
    )


def evaluation_options(arguments: argparse.Namespace) -> DataOptions:
    """How evaluation data is read, as it was said with these options.

    Raises:
        InvalidInputError: a value that is not allowed, or no --eval for them.
    """
    from onnxpress.runtime.data.options import DataOptions
    from onnxpress.runtime.errors import InvalidInputError

    for name in ("eval_columns", "eval_labels", "eval_split", "eval_samples"):
        if getattr(arguments, name) is not None and not arguments.eval:
            option = name.replace("_", "-")
            raise InvalidInputError(
                f"--{option} says how evaluation data is read, but there is none; give some (--eval)"
            )
    columns = mapping_of("--eval-columns", arguments.eval_columns)
    labels = mapping_of("--eval-labels", arguments.eval_labels)
    return DataOptions(columns or {}, labels or {}, arguments.eval_split, arguments.eval_samples)


def mapping_of(option: str, text: str | None) -> dict[str, str] | None:
    """What was given with an option that maps names.

    Raises:
        InvalidInputError: it is no mapping.
    """
    from onnxpress.runtime.data.options import parse_mapping

    return None if text is None else parse_mapping(option, text)
