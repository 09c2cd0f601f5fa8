"""The gate: a graph's outputs in onnxruntime against what PyTorch float32 computed for the same inputs.

The inputs and PyTorch's outputs travel in the bundle (`verification.npz`), so a machine without torch can run the gate
too. What the inputs are is decided in `exporter/cases.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidBundleError

CASES_FILE = "verification.npz"
OUTPUT = "sentence_embedding"

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Run = Callable[[dict[str, IntArray]], FloatArray]
Kind = Literal["max_abs", "cosine"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one run, and what PyTorch gave for them."""

    name: str
    feeds: dict[str, IntArray]
    """Graph inputs, each int64 [batch, sequence]."""
    expected: FloatArray
    """float32 [batch, dimension]."""
    real: bool
    """Whether the rows are real texts, which count for the mean agreement."""

    @property
    def padded_rows(self) -> npt.NDArray[np.bool_]:
        """bool [batch]: rows without any token. Their values mean nothing; they only have to be finite."""
        empty: npt.NDArray[np.bool_] = np.asarray(self.feeds["attention_mask"].sum(axis=1) == 0)
        return empty


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """How far one run was from PyTorch."""

    name: str
    max_abs_difference: float
    min_cosine: float
    passed: bool
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Parity:
    """The verdict of the gate on one graph."""

    kind: Kind
    threshold: float
    max_abs_difference: float
    min_cosine: float
    agreement: float
    """Mean cosine similarity over the rows that are real texts."""
    cases: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every case passed."""
        return all(case.passed for case in self.cases)

    def failure(self) -> str | None:
        """One sentence about the first case that failed, None if all passed."""
        for case in self.cases:
            if not case.passed:
                found = (
                    f"largest difference {case.max_abs_difference:.2g}, allowed {self.threshold:g} of the scale"
                    if self.kind == "max_abs"
                    else f"lowest cosine similarity {case.min_cosine:.5f}, needed {self.threshold:g}"
                )
                return f"differs from PyTorch on {case.name!r}: {case.note or found}"
        return None


def check_parity(run: Run, cases: Sequence[Case], kind: Kind, threshold: float) -> Parity:
    """Run every case and compare with PyTorch.

    Args:
        run: graph inputs to `sentence_embedding` [batch, dimension].
        cases: at least one with real texts.
        kind: `max_abs`: every |difference| <= threshold * max(1, max |expected|); `cosine`: the cosine similarity of
            every row >= threshold.
        threshold: the bound.
    """
    results, agreements = [], []
    for case in cases:
        result, cosines = _check_case(run, case, kind, threshold)
        results.append(result)
        if case.real:
            agreements.append(cosines)
    return Parity(
        kind=kind,
        threshold=threshold,
        max_abs_difference=max(result.max_abs_difference for result in results),
        min_cosine=min(result.min_cosine for result in results),
        agreement=float(np.concatenate(agreements).mean()),
        cases=tuple(results),
    )


def _check_case(run: Run, case: Case, kind: Kind, threshold: float) -> tuple[CaseResult, FloatArray]:
    padded = case.padded_rows
    try:
        found = run(case.feeds)
    # onnxruntime's exception classes have no common base but Exception.
    except Exception as error:  # noqa: BLE001
        note = f"onnxruntime failed: {(str(error).splitlines() or [''])[0][:200]}"
        return CaseResult(case.name, float("inf"), -1.0, False, note), np.full(1, -1, np.float32)
    if found.shape != case.expected.shape:
        note = f"the output has shape {list(found.shape)}, PyTorch's has {list(case.expected.shape)}"
        return CaseResult(case.name, float("inf"), -1.0, False, note), np.full(1, -1, np.float32)
    if not np.isfinite(found).all():
        rows = np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist()
        note = f"rows {rows} are not finite"
        return CaseResult(case.name, float("inf"), -1.0, False, note), np.full(1, -1, np.float32)
    compared, expected = found[~padded], case.expected[~padded]
    difference = float(np.abs(compared - expected).max())
    cosines = row_cosines(compared, expected)
    limit = threshold * max(1.0, float(np.abs(expected).max()))
    passed = difference <= limit if kind == "max_abs" else bool(cosines.min() >= threshold)
    note = ""
    if passed and padded.any():
        passed, note = _check_undisturbed(run, case, compared, limit if kind == "max_abs" else None, threshold)
    return CaseResult(case.name, difference, float(cosines.min()), passed, note), cosines


def _check_undisturbed(
    run: Run, case: Case, compared: FloatArray, limit: float | None, threshold: float
) -> tuple[bool, str]:
    """Whether the rows with tokens come out the same without the fully padded rows beside them."""
    alone = run({name: value[~case.padded_rows] for name, value in case.feeds.items()})
    if limit is not None:
        same = float(np.abs(alone - compared).max()) <= limit
    else:
        same = bool(row_cosines(alone, compared).min() >= threshold)
    return same, "" if same else "a fully padded row changes the rows beside it"


def row_cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    """Cosine similarity of each row of `a` [n, d] with the same row of `b`; 1 where both are zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    both_zero = (norms == 0) & (np.abs(a - b).max(axis=1) == 0)
    cosines: FloatArray = np.where(both_zero, 1.0, products / np.maximum(norms, 1e-30)).astype(np.float32)
    return cosines


def save_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write cases as one compressed numpy archive without pickles."""
    arrays: dict[str, Any] = {
        "names": np.array([case.name for case in cases]),
        "real": np.array([case.real for case in cases]),
    }
    for index, case in enumerate(cases):
        arrays[f"{index}.expected"] = case.expected
        arrays.update({f"{index}.feeds.{name}": value for name, value in case.feeds.items()})
    np.savez_compressed(path, **arrays)


def load_cases(path: Path) -> list[Case]:
    """Read what `save_cases` wrote.

    Raises:
        InvalidBundleError: the file is not such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: Mapping[str, Any] = {name: archive[name] for name in archive.files}
        cases = []
        for index, name in enumerate(arrays["names"].tolist()):
            prefix = f"{index}.feeds."
            feeds = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            cases.append(Case(name, feeds, arrays[f"{index}.expected"], bool(arrays["real"][index])))
        return cases
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise InvalidBundleError(
            f"{path} does not hold verification cases ({error}); export the bundle again"
        ) from error
