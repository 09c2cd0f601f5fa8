"""The gate: a graph's outputs in onnxruntime against what the reference computed for the same inputs.

The reference is PyTorch in float32, or the ONNX file that was given. The inputs and its outputs travel in the bundle
(`verification.npz`), so a machine without torch can run the gate too. What the inputs are is decided in
`exporter/cases.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidBundleError, first_line
from onnxpress.runtime.manifest import Tensor

CASES_FILE = "verification.npz"
_MOST_CASE_BYTES = 4 * 2**30
EMBEDDING = "sentence_embedding"
"""The one output whose rows are vectors that are compared by their direction."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Run = Callable[[dict[str, IntArray]], Mapping[str, FloatArray]]
Kind = Literal["max_abs", "cosine", "rms"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one run, and what the reference gave for them."""

    name: str
    feeds: dict[str, IntArray]
    """Graph inputs, each int64 [batch, sequence or another axis]."""
    expected: dict[str, FloatArray]
    """Graph outputs, each float32 [batch, ...]."""
    real: bool
    """Whether the rows are real texts, which count for the mean agreement."""

    @property
    def padded_rows(self) -> npt.NDArray[np.bool_]:
        """bool [batch]: rows without any token. Their values mean nothing; they only have to be finite."""
        empty: npt.NDArray[np.bool_] = np.asarray(self.feeds["attention_mask"].sum(axis=1) == 0)
        return empty


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """How far one run was from the reference."""

    name: str
    max_abs_difference: float
    min_cosine: float
    rms_error: float
    """Root of the mean squared difference, in units of max(1, the same of the expected values)."""
    passed: bool
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Parity:
    """The verdict of the gate on one graph."""

    kind: Kind
    threshold: float
    max_abs_difference: float
    min_cosine: float
    rms_error: float
    agreement: float
    """Mean cosine similarity over the inputs that are real texts: of each embedding, or of a batch's logits."""
    cases: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every case passed."""
        return all(case.passed for case in self.cases)

    def failure(self, reference: str = "the reference") -> str | None:
        """One sentence about the first case that failed, None if all passed; `reference` is what was compared with."""
        for case in self.cases:
            if not case.passed:
                found = {
                    "max_abs": f"largest difference {case.max_abs_difference:.2g}, allowed {self.threshold:g} of the "
                    "scale",
                    "cosine": f"lowest cosine similarity {case.min_cosine:.5f}, needed {self.threshold:g}",
                    "rms": f"root mean square error {case.rms_error:.3f} of the scale, allowed {self.threshold:g}",
                }[self.kind]
                return f"differs from {reference} on {case.name!r}: {case.note or found}"
        return None


def check_parity(run: Run, cases: Sequence[Case], outputs: Sequence[Tensor], kind: Kind, threshold: float) -> Parity:
    """Run every case and compare with the reference, where there are tokens.

    Args:
        run: graph inputs to graph outputs by name.
        cases: at least one with real texts.
        outputs: the graph's; an axis called `sequence` is compared at tokens only.
        kind: `max_abs`: every |difference| <= threshold * max(1, max |expected|); `cosine`: the cosine similarity of
            every embedding >= threshold; `rms`: the root mean square of the differences <= threshold * max(1, root mean
            square of what is expected).
        threshold: the bound.
    """
    check = _Check(run, outputs, kind, threshold)
    results, agreements = [], []
    for case in cases:
        result, cosines = check.case(case)
        results.append(result)
        if case.real:
            agreements.append(cosines)
    return Parity(
        kind=kind,
        threshold=threshold,
        max_abs_difference=max(result.max_abs_difference for result in results),
        min_cosine=min(result.min_cosine for result in results),
        rms_error=max(result.rms_error for result in results),
        agreement=float(np.concatenate(agreements).mean()),
        cases=tuple(results),
    )


@dataclasses.dataclass(frozen=True)
class _Check:
    run: Run
    outputs: Sequence[Tensor]
    kind: Kind
    threshold: float

    def case(self, case: Case) -> tuple[CaseResult, FloatArray]:
        """The result of a case, and the cosine similarity of each of its rows."""
        try:
            found = self.run(case.feeds)
        # onnxruntime's exception classes have no common base but Exception.
        except Exception as error:  # noqa: BLE001
            return _failed(case, f"onnxruntime failed: {first_line(error)}")
        for name, expected in case.expected.items():
            if found[name].shape != expected.shape:
                shapes = f"shape {list(found[name].shape)}, the reference's has {list(expected.shape)}"
                return _failed(case, f"the output {name} has {shapes}")
            bad = ~np.isfinite(found[name]) & np.isfinite(expected)  # of padding alone some models make NaN themselves
            if bad.any():
                rows = np.flatnonzero(bad.reshape(len(expected), -1).any(axis=1)).tolist()
                return _failed(case, f"rows {rows} of {name} are not finite")
        expected_rows = self._rows(case, case.expected)
        result, cosines = self._compare(case.name, self._rows(case, found), expected_rows)
        padded = case.padded_rows
        if result.passed and padded.any():
            feeds = {name: value[~padded] for name, value in case.feeds.items()}
            alone = dataclasses.replace(case, feeds=feeds)
            beside, _ = self._compare(case.name, self._rows(alone, self.run(feeds)), expected_rows)
            note = "" if beside.passed else "a fully padded row changes the rows beside it"
            result = dataclasses.replace(result, passed=beside.passed, note=note)
        return result, cosines

    def _rows(self, case: Case, values: Mapping[str, FloatArray]) -> FloatArray:
        """What is compared: each embedding as a row, or all logits of the case as one."""
        padded = case.padded_rows
        mask = case.feeds["attention_mask"].astype(bool)
        parts = [values[output.name][mask if output.shape[1] == "sequence" else ~padded] for output in self.outputs]
        if [output.name for output in self.outputs] == [EMBEDDING]:
            return parts[0]
        return np.concatenate([part.reshape(1, -1) for part in parts], axis=1)

    def _compare(self, name: str, found: FloatArray, expected: FloatArray) -> tuple[CaseResult, FloatArray]:
        difference = float(np.abs(found - expected).max(initial=0.0))
        error = _rms(found - expected) / max(1.0, _rms(expected))
        cosines = row_cosines(found, expected)
        passed = {
            "max_abs": difference <= self.threshold * max(1.0, float(np.abs(expected).max(initial=0.0))),
            "cosine": bool(cosines.min(initial=1.0) >= self.threshold),
            "rms": error <= self.threshold,
        }[self.kind]
        return CaseResult(name, difference, float(cosines.min(initial=1.0)), error, passed), cosines


def _failed(case: Case, note: str) -> tuple[CaseResult, FloatArray]:
    infinite = float("inf")
    return CaseResult(case.name, infinite, -1.0, infinite, False, note), np.full(1, -1, np.float32)


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def row_cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    """Cosine similarity of each row of `a` [n, d] with the same row of `b`; 1 where both are zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    both_zero = (norms == 0) & (np.abs(a - b).max(axis=1, initial=0.0) == 0)
    cosines: FloatArray = np.where(both_zero, 1.0, products / np.maximum(norms, 1e-30)).astype(np.float32)
    return cosines


def save_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write cases as one compressed numpy archive without pickles."""
    arrays: dict[str, Any] = {
        "names": np.array([case.name for case in cases]),
        "real": np.array([case.real for case in cases]),
    }
    for index, case in enumerate(cases):
        arrays.update({f"{index}.feeds.{name}": value for name, value in case.feeds.items()})
        arrays.update({f"{index}.expected.{name}": value for name, value in case.expected.items()})
    np.savez_compressed(path, **arrays)


def load_cases(path: Path) -> list[Case]:
    """Read what `save_cases` wrote.

    Raises:
        InvalidBundleError: the file is not such an archive.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if (size := sum(entry.file_size for entry in archive.zip.infolist())) > _MOST_CASE_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, the limit is {_MOST_CASE_BYTES:,}")
            arrays: Mapping[str, Any] = {name: archive[name] for name in archive.files}
        cases = []
        for index, name in enumerate(arrays["names"].tolist()):
            expected = _group(arrays, f"{index}.expected.")
            if not expected:  # the first bundles had embeddings only, under this name
                expected = {EMBEDDING: arrays[f"{index}.expected"]}
            cases.append(Case(name, _group(arrays, f"{index}.feeds."), expected, bool(arrays["real"][index])))
        return cases
    # What zipfile, zlib and numpy's own format raise for broken archives has no common base.
    except Exception as error:
        raise InvalidBundleError(
            f"{path} does not hold verification cases ({first_line(error)}); export the bundle again"
        ) from error


def _group(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
