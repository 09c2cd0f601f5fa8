"""bench/fuzz.py with fixed seeds: spoiled bundles are refused in a sentence or work, and nothing else happens; and what
goes wrong would be noticed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.fuzz import WAYS, Fuzzer, Opener
from bench.fuzzing.bundles import make_decoder, thin
from bench.fuzzing.canary import Canary

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="opened files are noticed with Linux's inotify")

CASES = 20
"""Of each kind; `python -m bench.fuzz` runs more."""
PATIENCE = 120.0  # seconds, for machines that do much else


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"encoder": thin(tiny_bundle, folder / "encoder"), "decoder": make_decoder(folder / "decoder")}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    made = Opener(tmp_path_factory.mktemp("opener"), PATIENCE)
    yield made
    made.close()


@pytest.mark.parametrize("base", ["encoder", "decoder"])
def test_the_bundles_are_good_before_they_are_spoiled(base: str, bases: dict[str, Path], opener: Opener) -> None:
    assert opener.open(bases[base])[0] == "fine"


@pytest.mark.parametrize("kind", WAYS)
def test_spoiled_bundles_are_refused_in_a_sentence_or_work(
    kind: str, bases: dict[str, Path], scratch: Path, opener: Opener
) -> None:
    fuzzer = Fuzzer(bases, scratch / kind, 11, (kind,), opener)
    try:
        ended = [fuzzer.case(number) for number in range(CASES)]
    finally:
        fuzzer.close()
    assert [case for case in ended if case.outcome not in ("fine", "refused")] == []
    assert any(case.outcome == "refused" for case in ended)


def test_a_case_follows_from_the_seed_and_its_number(
    bases: dict[str, Path], scratch: Path, tmp_path: Path, opener: Opener
) -> None:
    kept = []
    for name in ("first", "second"):
        fuzzer = Fuzzer(bases, scratch / name, 3, ("manifests",), opener)
        fuzzer.case(5, keep=tmp_path / name)
        fuzzer.close()
        kept.append((tmp_path / name / "onnxpress.json").read_bytes())
    assert kept[0] == kept[1]


def test_a_process_that_dies_or_hangs_is_noticed(tmp_path: Path, bases: dict[str, Path]) -> None:
    impatient = Opener(tmp_path / "impatient", seconds=0.0)
    assert impatient.open(bases["encoder"])[0] == "hang"
    poor = Opener(tmp_path / "poor", PATIENCE, memory_bytes=2**12)  # not enough for anything
    outcome, said = poor.open(bases["encoder"])
    poor.close()
    assert outcome in ("crash", "bug")
    assert "MemoryError" in said or "failed to map" in said


def test_a_file_that_is_opened_is_noticed(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "outside")
    assert canary.opened() == []
    canary.file.read_bytes()
    assert canary.opened() == ["canary.bin"]
    assert canary.opened() == []
    (tmp_path / "outside" / "new").touch()
    assert canary.opened() == ["new"]
    canary.close()
