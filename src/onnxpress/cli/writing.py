"""What the commands that write text share: their options, and an answer shown as it is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator


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
