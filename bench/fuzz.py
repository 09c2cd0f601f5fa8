"""Spoils tiny bundles in random ways, then loads and uses each in another process, which may refuse in a sentence and
must do nothing else: no traceback, no crash, no call that never returns, no file opened outside the bundle.

    python -m bench.fuzz --minutes 2 [--seed 0] [--ways tokenizers,graphs] [--case 1234] [--keep FOLDER] [--require]

A case follows from the seed and its number alone, so `--case` repeats one, and `--keep` leaves its bundle behind. Kinds
of files are taken in turn: manifests, tokenizers, ONNX files, and files that are no files. Prints how cases ended, then
each that went wrong; `--require` exits with 1 if there was one. Needs Linux, and what `onnxpress[export]` brings.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.common import NOT_MET, ROOT, environment_for, record
from bench.fuzzing import files, graphs, manifests, tokenizers
from bench.fuzzing.bundles import make_decoder, make_encoder, thin
from bench.fuzzing.canary import Canary

Way = Callable[[Path, random.Random, Path], str]

WAYS: dict[str, tuple[Way, ...]] = {
    "manifests": (
        manifests.change_values, manifests.change_values, manifests.scramble, manifests.reencode,
        manifests.point_outside, manifests.spoil_report,
    ),
    "tokenizers": (tokenizers.change_values, tokenizers.scramble, tokenizers.attack, tokenizers.attack),
    "graphs": (graphs.change_fields, graphs.change_fields, graphs.scramble, graphs.attack, graphs.attack),
    "files": (files.replace_file, files.replace_unlisted, files.replace_folder),
}  # fmt: skip
MEMORY_BYTES = 6 * 2**30
SECONDS = 30.0
"""What a case may take on a busy machine; a good bundle takes less than a tenth of a second."""
_CASES_OF_A_PROCESS = 300


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a case ended."""

    number: int
    base: str
    way: str
    said: str
    outcome: str
    """fine, refused, bug, crash, hang, outside."""
    what: str


class Opener:
    """A process that opens bundles, started anew when it has died."""

    def __init__(self, folder: Path, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        """
        Args:
            folder: where the process works, and writes nothing.
            seconds: after which an answer is no longer waited for.
            memory_bytes: of addresses that the process may have.
        """
        self.work = folder / "work"
        self._folder = folder
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._cases = 0

    def open(self, bundle: Path) -> tuple[str, str]:
        """The outcome of a bundle, and what was said."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"folder": str(bundle)}).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], self._seconds)
            line = process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if line:
            answer = json.loads(line)
            return answer["outcome"], answer["what"]
        if line is None:
            process.kill()
        status = process.wait()
        said = (self._folder / "stderr").read_text(errors="replace")[-1500:]
        self.close()
        return (
            ("hang", f"no answer after {self._seconds:g} s") if line is None else ("crash", f"status {status}: {said}")
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._cases >= _CASES_OF_A_PROCESS:
            self.close()
        if self._process is None:
            self.work.mkdir(parents=True, exist_ok=True)
            options = {"memory_bytes": self._memory_bytes, "cache": str(self._folder / "cache")}
            paths = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
            with (self._folder / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bench.fuzzing.worker", json.dumps(options)],
                    cwd=self.work,
                    env={**environment_for(2), "PYTHONPATH": paths},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                )
            self._cases = 0
        self._cases += 1
        return self._process


class Fuzzer:
    """Makes cases of good bundles and opens them."""

    def __init__(
        self,
        bases: dict[str, Path],
        scratch: Path,
        seed: int,
        ways: Sequence[str] = tuple(WAYS),
        opener: Opener | None = None,
    ) -> None:
        """
        Args:
            bases: good bundles by name.
            scratch: a folder that does not exist.
            seed: of all cases.
            ways: keys of WAYS.
            opener: that others use, too; None for one of its own, which is ended with it.
        """
        (scratch / "cases").mkdir(parents=True)
        self._bases = bases
        self._scratch = scratch
        self._seed = seed
        self._ways = tuple(ways)
        self._canary = Canary(scratch / "outside")
        self._opener = opener or Opener(scratch / "opener")
        self._ends_opener = opener is None

    def case(self, number: int, keep: Path | None = None) -> Ended:
        """Make a case, open it, and say how it ended."""
        rng = random.Random(f"{self._seed}/{number}")
        kind = self._ways[number % len(self._ways)]
        base = rng.choice(sorted(self._bases))
        way = rng.choice(WAYS[kind])
        folder = self._scratch / "cases" / str(number)
        shutil.copytree(self._bases[base], folder)
        said = way(folder, rng, self._canary.file)
        self._canary.opened()  # by us
        outcome, what = self._opener.open(folder)
        if opened := self._canary.opened():
            outcome, what = "outside", f"opened {', '.join(opened)}; {what}"
        elif there := self._written():
            outcome, what = "outside", f"wrote {there}; {what}"
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True)
        _remove(folder)
        return Ended(number, base, f"{kind}.{way.__name__}", said, outcome, what)

    def close(self) -> None:
        """End the process that opens bundles."""
        if self._ends_opener:
            self._opener.close()
        self._canary.close()

    def _written(self) -> str:
        """Files that a bundle made somewhere."""
        found = [*self._opener.work.iterdir(), *self._scratch.glob("outside/written*")]
        for path in found:
            _remove(path)
        return ", ".join(path.name for path in found)


def _remove(path: Path) -> None:
    """A folder with anything in it, and what was moved beside it."""
    for found in (path, path.with_name(f"{path.name}-away")):
        if found.is_symlink() or found.is_file():
            found.unlink()
        elif found.is_dir():
            shutil.rmtree(found)


def main() -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument("--keep", type=Path, help="leave the bundle of that case here")
    parser.add_argument("--require", action="store_true", help="exit with 1 if a case went wrong")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        whole = make_encoder(scratch / "whole", scratch)
        bases = {
            "encoder": thin(whole, scratch / "encoder"),
            "decoder": make_decoder(scratch / "decoder"),
        }
        fuzzer = Fuzzer(bases, scratch / "fuzz", arguments.seed, arguments.ways.split(","))
        try:
            ended = _run(fuzzer, arguments)
        finally:
            fuzzer.close()
    return _report(ended, arguments)


def _run(fuzzer: Fuzzer, arguments: argparse.Namespace) -> list[Ended]:
    if arguments.case is not None:
        return [fuzzer.case(arguments.case, arguments.keep)]
    end = time.monotonic() + 60 * arguments.minutes
    found: list[Ended] = []
    while time.monotonic() < end:
        found.append(fuzzer.case(len(found)))
        if found[-1].outcome not in ("fine", "refused"):
            print(_line(found[-1]), flush=True)
    return found


def _report(ended: list[Ended], arguments: argparse.Namespace) -> int:
    table = collections.Counter((case.way, case.outcome) for case in ended)
    outcomes = ("fine", "refused", "bug", "crash", "hang", "outside")
    print(f"{'way':<28}" + "".join(f"{name:>9}" for name in outcomes))
    for way in sorted({case.way for case in ended}):
        print(f"{way:<28}" + "".join(f"{table[way, name]:>9}" for name in outcomes))
    wrong = [case for case in ended if case.outcome not in ("fine", "refused")]
    if arguments.case is not None:
        print(_line(ended[0]), ended[0].what, sep="\n")
    print(json.dumps({"cases": len(ended), "seed": arguments.seed, "wrong": len(wrong), **record()}))
    return NOT_MET if wrong and arguments.require else 0


def _line(case: Ended) -> str:
    last = (case.what.strip().splitlines() or [""])[-1]
    return f"{case.number} {case.base} {case.way} ({case.said[:150]}): {case.outcome}: {last[:300]}"


if __name__ == "__main__":
    sys.exit(main())
