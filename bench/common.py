"""What the benchmarks share: processes that answer with JSON, medians, limits, the record of the machine, inputs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_MET = 1
BAD_INPUT = 2


class BadInputError(Exception):
    """Something given on the command line cannot be used; the text is a sentence."""


# --- processes ---


def run_json(module: str, options: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run `python -m MODULE JSON` from the repository root and return the object on the last line it prints.

    Raises:
        BadInputError: the process failed; the text has its last line.
    """
    command = [sys.executable, "-m", module, json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BadInputError(f"the measuring process {module} failed: {said[:300]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


_SETTLED_SECONDS = 0.3
"""Pause before a question: threads of the process that answered before wait for work some 0.1 s, and take cores."""


class Worker:
    """A process `python -m MODULE JSON` in the repository root that answers JSON lines with JSON lines."""

    def __init__(
        self, module: str, options: Mapping[str, Any], environment: Mapping[str, str], python: str = sys.executable
    ) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(options)],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            BadInputError: the process has ended; the text has its last line.
        """
        assert self._process.stdin is not None
        time.sleep(_SETTLED_SECONDS)
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # said below
        return self._answer()

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = (self._process.communicate()[1].strip().splitlines() or ["no output"])[-1]
            raise BadInputError(f"the measuring process {self._module} failed: {said[:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def offline_environment() -> dict[str, str]:
    """This process's environment, with the libraries kept off the network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}


def environment_for(threads: int) -> dict[str, str]:
    """The same, with every library limited to `threads` threads."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    return {**offline_environment(), **limits}


# --- figures ---


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some measurements and how far they lie apart."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, form: str) -> str:
        """The median, and the range in brackets."""
        return f"{self.median:{form}} [{self.lowest:{form}} to {self.highest:{form}}]"


@dataclasses.dataclass(frozen=True)
class Limit:
    """A figure that must be at most, or at least, a bound."""

    name: str
    found: float | None
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound; a figure that is not there does not."""
        if self.found is None:
            return False
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    def show(self) -> str:
        """One line for people."""
        found = "not measured" if self.found is None else f"{self.found:.4g}"
        side = ">=" if self.at_least else "<="
        return f"  {'met    ' if self.met else 'NOT MET'}  {self.name}: {found}, required {side} {self.bound:.4g}"


def finish(figures: Mapping[str, Any], limits: Sequence[Limit], require: bool) -> int:
    """Print the limits and the JSON line; the exit status is 1 if limits are required and one is not met."""
    print("\nlimits")
    for limit in limits:
        print(limit.show())
    met = all(limit.met for limit in limits)
    print(json.dumps({**figures, "limits_met": met}, ensure_ascii=False))
    return NOT_MET if require and not met else 0


# --- the machine ---


def record() -> dict[str, Any]:
    """Processor, features, cores, versions and date: what any figure belongs to."""
    from onnxpress.runtime.machine import describe_machine, versions

    found = versions()
    for name in ("sentence-transformers", "scipy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    machine = dataclasses.asdict(describe_machine())
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **machine,
        "cpu_features": list(machine["cpu_features"]),
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": found,
    }


def show_record(facts: Mapping[str, Any]) -> None:
    """Print the record; a machine that is busy with something else is pointed out."""
    print(f"{facts['date']}  {facts['cpu']}, {facts['cores']} cores, {' '.join(facts['cpu_features'])}")
    print(f"{facts['system']}, Python {facts['python']}")
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    busy = facts["load_average_before"]
    print(f"load average before: {busy}" + ("  (the machine is busy: figures will be off)" if busy > 0.5 else ""))


def memory_bytes(peak: bool = False) -> int:
    """Physical memory that this process holds, or the most it has held.

    Raises:
        BadInputError: the system does not tell.
    """
    from onnxpress.runtime.machine import peak_memory_bytes, resident_memory_bytes

    found = peak_memory_bytes() if peak else resident_memory_bytes()
    if found is None:
        raise BadInputError("this system does not tell the memory of a process")
    return found


# --- inputs ---


def read_lines(paths: Sequence[Path]) -> list[str]:
    """The lines of text files that are not empty."""
    lines = [line.strip() for path in paths for line in _text_of(path).splitlines()]
    return [line for line in lines if line]


def read_sts(folder: Path) -> list[tuple[float, str, str]]:
    """Score and two sentences of every row of every *.tsv in a folder, files in the order of their names.

    Raises:
        BadInputError: there is no such file, or a row is not `score<TAB>sentence<TAB>sentence`.
    """
    paths = sorted(folder.glob("*.tsv"))
    if not paths:
        raise BadInputError(f"{folder} has no *.tsv files; give the folder of one year, such as sts/2013")
    return [row for path in paths for row in _scored_rows(path, skip=0, columns=(0, 1, 2))]


def read_sick(path: Path) -> list[tuple[float, str, str]]:
    """Relatedness and two sentences of every row of a SICK file, which begins with a header."""
    return _scored_rows(path, skip=1, columns=(3, 1, 2))


def _scored_rows(path: Path, skip: int, columns: tuple[int, int, int]) -> list[tuple[float, str, str]]:
    score, first, second = columns
    rows = []
    # Not str.splitlines: a sentence may hold U+2028 and the like.
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if number <= skip or not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        try:
            rows.append((float(cells[score]), cells[first], cells[second]))
        except (IndexError, ValueError) as error:
            raise BadInputError(f"{path}, line {number}: not a score and two sentences between tabs") from error
    return rows


def sts_sentences(folder: Path, count: int) -> list[str]:
    """The first `count` sentences of a folder of STS files, then of `SICK_train.txt` beside the folder.

    Raises:
        BadInputError: there are fewer.
    """
    rows = read_sts(folder)
    more = folder.resolve().parent / "SICK_train.txt"
    if 2 * len(rows) < count and more.is_file():
        rows += read_sick(more)
    sentences = [sentence for _, *pair in rows for sentence in pair]
    if len(sentences) < count:
        raise BadInputError(f"{folder} has {len(sentences)} sentences, {count} are needed")
    return sentences[:count]


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text (byte {error.start})") from error


@contextlib.contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """The folder that is to be kept, made if it is not there; where none is, one that is gone afterwards."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def existing_folder(text: str) -> Path:
    """An argparse type: the absolute path of a folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return path.resolve()
