"""`onnxpress run BUNDLE`: texts in, one JSON line a text out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from onnxpress.cli.writing import add_beam_arguments, add_writing_arguments

if TYPE_CHECKING:
    from onnxpress.cli.answers import Answering
    from onnxpress.runtime.tables import TextLine

HELP = "Read texts from a file or stdin and write the model's answers as JSON lines."

_FORMS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_CHUNK = 1024  # texts in memory at once, where they are answered one by one; enough to sort them by length


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--input", "-i", metavar="FILE", help="texts to read (default: stdin)")
    parser.add_argument("--output", "-o", metavar="FILE", help="where to write JSON lines (default: stdout)")
    parser.add_argument(
        "--format",
        choices=("text", "csv", "tsv", "jsonl"),
        help="form of the input (default: by its name, else text)",
    )
    parser.add_argument("--column", help="column or key of the text (default: text; of question-answering: context)")
    parser.add_argument(
        "--pair-column",
        help="column or key of the other text of a pair (default: none; of text-ranking: query, of question-answering: "
        "question)",
    )
    parser.add_argument("--query", help="rank all texts for this query, best first; or ask this question of every text")
    parser.add_argument("--labels", metavar="LIST", help="labels to choose from, by an NLI model (zero-shot)")
    parser.add_argument("--hypothesis", help="sentence that a label is put into, at {} (default: This example is {}.)")
    parser.add_argument("--multi-label", action="store_true", help="several of the labels may be right")
    parser.add_argument(
        "--strategy", help="how tokens become entities: none, simple, first, average or max (default: simple)"
    )
    parser.add_argument(
        "--top-k", type=int, help="proposals for each gap of a text (default: 5); or tokens to choose the next from"
    )
    parser.add_argument("--prompt", help="continue this text and write the answer as it is made, in place of lines")
    add_writing_arguments(parser)
    add_beam_arguments(parser)
    parser.add_argument("--prompt-name", help="a prompt of the model's own to put before each text")
    parser.add_argument("--variant", help="which variant to use (default: the bundle's)")
    parser.add_argument("--providers", help="execution providers, such as cpu or cuda, in order of preference")
    parser.add_argument("--threads", type=int, help="CPU threads to use (default: the cores allowed)")
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress and no notes about figures")


def run(arguments: argparse.Namespace) -> int:
    """Answer every text; status 2 if any line could not be answered, or if there was none."""
    from onnxpress.cli.answers import answering
    from onnxpress.cli.figures import log_on_stderr
    from onnxpress.cli.writing import write_answer
    from onnxpress.runtime.errors import InvalidInputError
    from onnxpress.runtime.model import load
    from onnxpress.runtime.tables import read_texts

    providers = arguments.providers.split(",") if arguments.providers else None
    with contextlib.nullcontext() if arguments.quiet else log_on_stderr():
        model = load(arguments.bundle, arguments.variant, providers, arguments.threads)
    plan = answering(model, arguments)
    if arguments.prompt is not None:
        for option in ("input", "output", "format", "column"):
            if getattr(arguments, option) is not None:
                raise InvalidInputError(
                    f"--prompt is one text, whose answer goes to stdout; leave out --{option}, or --prompt"
                )
        if plan.writing.get("num_beams", 1) != 1:
            return write_answer(iter([model.generate(arguments.prompt, **plan.writing).text]))
        return write_answer(model.stream(arguments.prompt, **plan.writing))
    suffix = "." + arguments.input.rsplit(".", 1)[-1].lower() if arguments.input else ""
    form = arguments.format or _FORMS.get(suffix, "text")
    answered, failed = 0, 0
    with (
        _input(arguments.input) as source,
        _output(arguments.output) as sink,
        _progress(arguments.quiet, source) as advance,
    ):
        lines = read_texts(source, form, arguments.column or plan.column, plan.second)
        while chunk := list(lines if plan.whole else islice(lines, _CHUNK)):
            for record in _records(plan, chunk):
                if "error" in record:
                    failed += 1
                    print(f"onnxpress: line {record['line']}: {record['error']}", file=sys.stderr)
                sink.write(json.dumps(record, ensure_ascii=False) + "\n")
            sink.flush()
            answered += len(chunk)
            advance(len(chunk))
    if not answered:
        raise InvalidInputError("the input has no texts; give one a line, or a file with --input")
    return 2 if failed else 0


def _records(plan: Answering, lines: list[TextLine]) -> Iterator[dict[str, Any]]:
    """What is written for some lines: a record for each in order, unless they are answered as a whole."""
    from onnxpress.cli.answers import answer_each

    checked = [_checked(line) for line in lines]
    if not plan.whole:
        yield from answer_each(plan, checked)
        return
    yield from plan.answer([line for line in checked if line.error is None])
    yield from ({"line": line.number, "error": line.error} for line in checked if line.error is not None)


def _checked(line: TextLine) -> TextLine:
    """The line, with the reason if its text cannot be used by any model."""
    from onnxpress.runtime.tokenizer import MAX_TEXT_CHARACTERS

    for text in (line.text, line.second):
        if text is not None and len(text) > MAX_TEXT_CHARACTERS:
            reason = f"{len(text):,} characters, the limit is {MAX_TEXT_CHARACTERS:,}; split the text"
            return dataclasses.replace(line, error=reason)
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            return dataclasses.replace(line, error="a lone surrogate, so not valid Unicode")
    return line


@contextlib.contextmanager
def _input(path: str | None) -> Iterator[BinaryIO]:
    from onnxpress.runtime.errors import InvalidInputError

    if path is None:
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; opening alone is guarded
    except OSError as error:
        raise InvalidInputError(f"the input {path} cannot be read: {error.strerror}") from error
    with file:
        yield file


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
    from onnxpress.runtime.errors import InvalidInputError

    if path is None:
        yield sys.stdout
        return
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InvalidInputError(f"the output {path} cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _progress(quiet: bool, source: BinaryIO) -> Iterator[Callable[[int], None]]:
    """A bar when stderr is a terminal: how far the input file is read, or how many texts when its end is not known."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    size = os.fstat(source.fileno()).st_size if source.seekable() else None
    columns = (BarColumn(), TextColumn("{task.fields[texts]:,} texts"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=size, texts=0)

        def advance(count: int) -> None:
            texts = progress.tasks[0].fields["texts"] + count
            progress.update(task, completed=source.tell() if size is not None else texts, texts=texts)

        yield advance
