"""How soon a new process answers: start of the process to the first embedding, and what importing costs.

`python -m bench.coldstart BUNDLE --model FOLDER` starts one process after another, onnxpress and sentence-transformers
in turn, and notes when each has its first embedding. The files were read once before, so disks do not count. Import
and help are compared with `python -c pass`, in turn as well. Medians count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import common

MOST_SECONDS = 0.6
MOST_FRACTION = 1 / 15
MOST_IMPORT_SECONDS = 0.15
MOST_HELP_SECONDS = 0.3

_TEXT = "The first sentence that a new process embeds."
_DONE = "embedded"
# The vector goes through len() so that nothing is left to be computed when the word is printed.
_ONNXPRESS = (
    "import sys, onnxpress; "
    "assert len(onnxpress.load(sys.argv[1]).embed([sys.argv[2]])) == 1; "
    f"print({_DONE!r}, flush=True)"
)
_SENTENCE_TRANSFORMERS = (
    "import sys; from sentence_transformers import SentenceTransformer; "
    "assert len(SentenceTransformer(sys.argv[1], device='cpu').encode([sys.argv[2]])) == 1; "
    f"print({_DONE!r}, flush=True)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.coldstart", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--model", required=True, metavar="FOLDER", type=common.existing_folder)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.coldstart: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """Both comparisons and the result."""
    if options.rounds < 1:
        raise common.BadInputError("--rounds must be at least 1")
    facts = common.record()
    common.show_record(facts)
    python = sys.executable
    starts = in_turn(
        {
            "onnxpress": [python, "-c", _ONNXPRESS, str(options.bundle), _TEXT],
            "sentence-transformers": [python, "-c", _SENTENCE_TRANSFORMERS, str(options.model), _TEXT],
        },
        options.rounds,
        until=_DONE,
    )
    imports = in_turn(
        {
            "python -c pass": [python, "-c", "pass"],
            "import onnxpress": [python, "-c", "import onnxpress"],
            "onnxpress --help": [*_command(), "--help"],
        },
        2 * options.rounds + 1,
    )
    bare = imports["python -c pass"].median
    figures = {
        "onnxpress_seconds": starts["onnxpress"].median,
        "sentence_transformers_seconds": starts["sentence-transformers"].median,
        "fraction": starts["onnxpress"].median / starts["sentence-transformers"].median,
        "bare_python_seconds": bare,
        "import_seconds_beyond_bare": imports["import onnxpress"].median - bare,
        "help_seconds_beyond_bare": imports["onnxpress --help"].median - bare,
    }
    print("\nseconds, median [range]")
    for name, spread in {**starts, **imports}.items():
        print(f"  {name:<22}  {spread.show('.3f')}")
    print(f"  first embedding after 1/{1 / figures['fraction']:.1f} of the time of sentence-transformers")
    limits = [
        common.Limit("first embedding, seconds", figures["onnxpress_seconds"], MOST_SECONDS),
        common.Limit("fraction of sentence-transformers", figures["fraction"], MOST_FRACTION),
        common.Limit("import beyond bare, seconds", figures["import_seconds_beyond_bare"], MOST_IMPORT_SECONDS),
        common.Limit("--help beyond bare, seconds", figures["help_seconds_beyond_bare"], MOST_HELP_SECONDS),
    ]
    settings = {"benchmark": "coldstart", "rounds": options.rounds}
    return common.finish({**settings, **figures, "machine": facts}, limits, options.require)


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int, until: str | None = None) -> dict[str, common.Spread]:
    """Seconds of each command, one after another, after a round that only fills the file cache."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds = seconds_until(command, until)
            if number:
                found[name].append(seconds)
    return {name: common.Spread.of(seconds) for name, seconds in found.items()}


def seconds_until(command: Sequence[str], line: str | None) -> float:
    """Seconds from starting a process until it prints a line, or until it ends.

    Raises:
        BadInputError: it ends otherwise; the text has the last line of what it said.
    """
    environment = common.offline_environment()
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        end = None
        if line is not None:
            for printed in process.stdout:
                if printed.strip() == line:
                    end = time.perf_counter()
                    break
        _, errors = process.communicate()
    ended = time.perf_counter()
    if process.returncode or (line is not None and end is None):
        said = (errors.strip().splitlines() or ["no output"])[-1]
        raise common.BadInputError(f"{Path(command[0]).name} {' '.join(command[1:2])} failed: {said[:300]}")
    return (end or ended) - start


def _command() -> list[str]:
    """The installed command `onnxpress`, which a user types."""
    script = Path(sysconfig.get_path("scripts")) / "onnxpress"
    if not script.is_file():
        raise common.BadInputError(f"the command onnxpress is not installed at {script}; run make install")
    return [str(script)]


if __name__ == "__main__":
    sys.exit(main())
