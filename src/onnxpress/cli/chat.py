"""`onnxpress chat BUNDLE`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from onnxpress.cli.writing import add_writing_arguments

HELP = "Talk with a model: it answers as it writes; Ctrl-C stops an answer, Ctrl-D or /exit ends."

_YOU, _CLEAR, _EXIT = "> ", "/clear", "/exit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    add_writing_arguments(parser)
    parser.add_argument("--top-k", type=int, help="tokens to choose the next from")
    parser.add_argument("--variant", help="which variant to use (default: the bundle's)")
    parser.add_argument("--threads", type=int, help="CPU threads to use (default: the cores allowed)")


def run(arguments: argparse.Namespace) -> int:
    """Ask and answer until the input ends."""
    from onnxpress.cli.answers import writing_options
    from onnxpress.runtime.errors import InvalidInputError
    from onnxpress.runtime.model import load

    model = load(arguments.bundle, arguments.variant, None, arguments.threads, task="text-generation")
    options: dict[str, Any] = writing_options(arguments)
    start = [{"role": "system", "content": arguments.system}] if arguments.system else []
    model.chat_prompt([*start, {"role": "user", "content": "?"}])  # a model without a template says so at once
    messages = list(start)
    if sys.stdin.isatty():
        print(f"{_CLEAR} begins anew, {_EXIT} or Ctrl-D ends, Ctrl-C stops an answer.", file=sys.stderr)
    while (said := _ask()) is not None:
        if said == _CLEAR:
            messages = list(start)
        elif said:
            messages.append({"role": "user", "content": said})
            try:
                messages.append({"role": "assistant", "content": _answer(model, messages, options)})
            except InvalidInputError as error:
                messages.pop()
                print(f"onnxpress: {error}", file=sys.stderr)
    return 0


def _ask() -> str | None:
    """What the person says; None when they are done."""
    try:
        said = input(_YOU if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""
    return None if said == _EXIT else said


def _answer(model: Any, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """The answer, written as it comes; what was written when Ctrl-C stopped it."""
    written = []
    pieces = model.stream_chat(messages, **options)
    try:
        for piece in pieces:
            written.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # the engine frees its row at once
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(written)
