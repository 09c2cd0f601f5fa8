"""Options that say what evaluation data is and how it is read, for every command that reads some."""

from __future__ import annotations

import argparse


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


def mapping_of(option: str, text: str | None) -> dict[str, str] | None:
    """What was given with an option that maps names.

    Raises:
        InvalidInputError: it is no mapping.
    """
    from onnxpress.runtime.data.options import parse_mapping

    return None if text is None else parse_mapping(option, text)
