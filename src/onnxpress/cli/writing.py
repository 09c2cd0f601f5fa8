"""What the commands that write text share: their options, and an answer shown as it is made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.runtime.generation.constraints import Grammar

_PLAIN = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_id",
    "prompt_lookup",
)
"""Options with the values that they have in Python."""
_GRAMMARS = ("json_object", "json_schema", "regex", "choice")
_BEAMS = ("beams", "length_penalty", "early_stopping")
_HEEDED_BY_BEAMS = ("max_new_tokens", "repetition_penalty", "stop_token_id")
WRITING = (*(name for name in _PLAIN if name != "top_k"), *_GRAMMARS, *_BEAMS)
"""Options that are for writing alone."""


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of an answer; what is not said is as the model's own generation_config.json has it."""
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of an answer at most")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 for the likeliest token each time")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose from the likeliest tokens of this probability")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="choose from tokens at least so probable, as a part of the likeliest's"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="above 1: less of what the prompt or the answer has"
    )
    parser.add_argument(
        "--presence-penalty", type=float, metavar="X", help="above 0: less of the tokens that the answer has"
    )
    parser.add_argument(
        "--frequency-penalty", type=float, metavar="X", help="above 0: less of a token each time that the answer has it"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer")
    parser.add_argument(
        "--prompt-lookup",
        type=int,
        metavar="N",
        help="draft up to N tokens from what was written before; same answer, sooner",
    )
    parser.add_argument("--stop", metavar="TEXT", action="append", help="end before this text; may be repeated")
    parser.add_argument(
        "--stop-token-id",
        type=int,
        metavar="ID",
        action="append",
        help="end at this token; may be repeated",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json-object", action="store_true", help="the answer is a JSON object")
    form.add_argument("--json-schema", metavar="FILE", help="the answer is JSON that is valid under this schema")
    form.add_argument("--regex", metavar="PATTERN", help="the answer matches this pattern as a whole")
    form.add_argument("--choice", metavar="TEXT", action="append", help="the answer is one of these; repeat for each")


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


def was_said(arguments: argparse.Namespace, name: str) -> bool:
    """Whether an option was given."""
    value = getattr(arguments, name)
    return value is not None and value is not False  # not by equality: 0 equals False, and was said


def writing_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said about how to write, as keyword arguments of `generate`; the rest is the model's own.

    Raises:
        InvalidInputError: a value that cannot be meant.
    """
    from onnxpress.runtime.generation.beams import Beams
    from onnxpress.runtime.generation.options import BEYOND_SAMPLING
    from onnxpress.runtime.generation.sampling import Sampling

    options = {name: getattr(arguments, name) for name in _PLAIN if getattr(arguments, name) is not None}
    if "stop_token_id" in options:
        options["stop_token_ids"] = options.pop("stop_token_id")
    options |= _beam_options(arguments)
    grammar = _grammar(arguments)
    if grammar is not None:
        options["grammar"] = grammar
    # Said once, before any text is read.
    Beams.from_options(options, {})
    Sampling.with_defaults({}, **{name: value for name, value in options.items() if name not in BEYOND_SAMPLING})
    return options


def _grammar(arguments: argparse.Namespace) -> Grammar | None:
    """What answers have to be."""
    from onnxpress.runtime.errors import InvalidInputError
    from onnxpress.runtime.generation.constraints import choice, json_object, json_schema, regex

    if arguments.json_object:
        return json_object()
    if arguments.regex is not None:
        return regex(arguments.regex)
    if arguments.choice is not None:
        return choice(arguments.choice)
    if arguments.json_schema is None:
        return None
    try:
        return json_schema(Path(arguments.json_schema).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInputError(f"the schema {arguments.json_schema} cannot be read: {why}") from error


def _beam_options(arguments: argparse.Namespace) -> dict[str, Any]:
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
    for name in (*_PLAIN, *_GRAMMARS):
        if was_said(arguments, name) and arguments.beams != 1 and name not in _HEEDED_BY_BEAMS:
            raise InvalidInputError(
                f"--{name.replace('_', '-')} cannot be combined with --beams, which draws nothing, drafts nothing, "
                "follows no grammar and ends before no text; leave one of them out"
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
