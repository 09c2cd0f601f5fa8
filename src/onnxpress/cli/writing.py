"""What the commands that write text share: their options, and an answer shown as it is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of an answer; what is not said is as the model's own generation_config.json has it."""
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of an answer at most")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest token each time")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose from the likeliest tokens of this probability")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    parser.add_argument(
        "--prompt-lookup",
        type=int,
        metavar="N",
        help="draft up to N tokens from what was written before; same answer, sooner",
    )
    parser.add_argument("--stop", metavar="TEXT", action="append", help="end before this text; may be repeated")


def add_beam_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a search for the likeliest answers, which cannot be shown before its end."""
    parser.add_argument(
        "--beams", type=int, metavar="N", help="continue N answers together and give the likeliest as a whole"
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="with --beams: 1 for the mean log probability of a token; above for longer answers, below for shorter",
    )
    parser.add_argument(
        "--early-stopping",
        choices=("true", "false", "never"),
        help="with --beams: end with the first N answers (true), when none of the present length could be better "
        "(false), or when none at all could be (never) (default: false)",
    )


def beam_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said about a search, under the names it has in Python.

    Raises:
        InvalidInputError: something cannot be combined with it, or is for it alone.
    """
    from onnxpress.runtime.errors import InvalidInputError

    if getattr(arguments, "beams", None) is None:
        for name in ("length_penalty", "early_stopping"):
            if getattr(arguments, name, None) is not None:
                raise InvalidInputError(f"--{name.replace('_', '-')} is for --beams; give that too, or leave it out")
        return {}
    for name in ("temperature", "top_k", "top_p", "seed", "stop", "prompt_lookup"):
        if arguments.beams != 1 and getattr(arguments, name) is not None:
            raise InvalidInputError(
                f"--{name.replace('_', '-')} cannot be combined with --beams, which draws nothing, drafts nothing and "
                "ends before no text; leave one of them out"
            )
    early = {"true": True, "false": False}.get(arguments.early_stopping, arguments.early_stopping)
    given = {"num_beams": arguments.beams, "length_penalty": arguments.length_penalty, "early_stopping": early}
    return {name: value for name, value in given.items() if value is not None}


def write_answer(pieces: Iterator[str]) -> int:
    """Write pieces to stdout as they come, and a line end, also where Ctrl-C stops them."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        raise
    sys.stdout.write("\n")
    return 0
