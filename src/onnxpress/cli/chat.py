"""`onnxpress chat BUNDLE`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from onnxpress.cli.writing import add_writing_arguments

HELP = "Talk with a model: it answers as it writes; Ctrl-C stops an answer, Ctrl-D or /exit ends."

Message = dict[str, str]

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
    from onnxpress.cli.figures import log_on_stderr
    from onnxpress.cli.writing import writing_options
    from onnxpress.runtime.model import load

    with log_on_stderr():
        model = load(arguments.bundle, arguments.variant, threads=arguments.threads, task="text-generation")
    options: dict[str, Any] = writing_options(arguments)
    start = [{"role": "system", "content": arguments.system}] if arguments.system else []
    model.generate([], **options)  # a grammar that the model cannot follow is said at once
    model.chat_prompt([*start, {"role": "user", "content": "?"}])  # and a model without a template
    conversation = start
    if sys.stdin.isatty():
        print(f"{_CLEAR} begins anew, {_EXIT} or Ctrl-D ends, Ctrl-C stops an answer.", file=sys.stderr)
    while True:
        try:
            said = _ask()
            if said is None:
                return 0
            if said == _CLEAR:
                conversation = start
            elif said:
                conversation = _turn(model, conversation, said, options)
        except KeyboardInterrupt:  # while nothing is being answered
            print()


def _ask() -> str | None:
    """What the person says; None when they are done."""
    try:
        said = input(_YOU if sys.stdin.isatty() else "").strip()
    except EOFError:
        if sys.stdin.isatty():
            print()
        return None
    return None if said == _EXIT else said


def _turn(model: Any, conversation: list[Message], said: str, options: dict[str, Any]) -> list[Message]:
    """The conversation with what was said and its answer; as it was, where there is none."""
    from onnxpress.runtime.errors import OnnxpressError

    asked = [*conversation, {"role": "user", "content": said}]
    try:
        answer = _answer(model, asked, options)
    except OnnxpressError as error:
        # Such as a conversation that has become longer than the context, which will not become shorter.
        way_out = f"; {_CLEAR} begins anew" if any(each["role"] == "assistant" for each in conversation) else ""
        print(f"onnxpress: {error}{way_out}", file=sys.stderr)
        return conversation
    return [*asked, {"role": "assistant", "content": answer}] if answer else conversation


def _answer(model: Any, messages: list[Message], options: dict[str, Any]) -> str:
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
