"""runtime/evaluation.py: Spearman's rank correlation, against its definition."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import Embed, Evaluation, evaluate, read_evaluation
from onnxpress.runtime.tables import ScoredPair

FloatArray = npt.NDArray[np.float64]


def ranks(values: Sequence[float]) -> FloatArray:
    """Ranks from 1, the mean rank where values are equal."""
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() + 1) / 2 for value in array])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the ranks."""
    x, y = ranks(a) - ranks(a).mean(), ranks(b) - ranks(b).mean()
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


def evaluation(scores: Sequence[float]) -> Evaluation:
    pairs = (ScoredPair(score, f"a{index}", f"b{index}") for index, score in enumerate(scores))
    return Evaluation(tuple(pairs), ("made up",), "")


def embed_at_angles(angles: Sequence[float], lengths: Sequence[float] | None = None) -> Embed:
    """An `embed` that puts the second sentence of pair i at `angles[i]` from the first, of any length."""

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        rows = []
        for text in texts:
            index = int(text[1:])
            angle = angles[index] if text[0] == "b" else 0.0
            size = lengths[index] if lengths and text[0] == "b" else 1.0
            rows.append((size * np.cos(angle), size * np.sin(angle)))
        return np.array(rows, np.float32)

    return embed


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 60)), min_size=3, max_size=40))
def test_it_is_the_correlation_of_ranks(rows: list[tuple[int, int]]) -> None:
    scores, steps = [row[0] / 2 for row in rows], [row[1] for row in rows]
    if len(set(scores)) < 2 or len(set(steps)) < 2:
        return
    found = evaluate(embed_at_angles([step / 20 for step in steps]), evaluation(scores))
    assert found == pytest.approx(100 * spearman(scores, [-step for step in steps]), abs=1e-9)


def test_known_values() -> None:
    angles = [0.1, 0.4, 0.8, 1.5]
    assert evaluate(embed_at_angles(angles), evaluation([5, 4, 3, 0])) == pytest.approx(100)
    assert evaluate(embed_at_angles(angles), evaluation([0, 1, 2, 9])) == pytest.approx(-100)
    # 1 - 6 * sum(d^2) / (n (n^2 - 1)) with one exchange of neighbours
    assert evaluate(embed_at_angles(angles), evaluation([5, 3, 4, 0])) == pytest.approx(80)


def test_lengths_of_vectors_do_not_count() -> None:
    embed = embed_at_angles([0.1, 0.4, 0.8, 1.5], lengths=[0.01, 1, 100, 1e4])
    assert evaluate(embed, evaluation([5, 4, 3, 0])) == pytest.approx(100)


def test_all_texts_are_embedded_in_one_call_in_order() -> None:
    calls = []

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        calls.append(texts)
        return np.random.default_rng(0).normal(size=(len(texts), 3)).astype(np.float32)

    evaluate(embed, evaluation([1, 2, 3]))
    assert calls == [["a0", "b0", "a1", "b1", "a2", "b2"]]


def test_rows_of_several_files_are_one_evaluation(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tsv", tmp_path / "second.csv"
    first.write_text("1\ta\tb\n2\tc\td\n")
    second.write_text("sentence1,sentence2,score\ne,f,3\ng,h,4\n")
    read = read_evaluation([first, second])
    assert read.texts == list("abcdefgh")
    assert [pair.score for pair in read.pairs] == [1, 2, 3, 4]
    assert read.files == ("first.tsv", "second.csv")
    assert read.sha256 != read_evaluation([first]).sha256
    second.write_text("sentence1,sentence2,score\ne,f,3\ng,h,5\n")
    assert read.sha256 != read_evaluation([first, second]).sha256


def test_a_bad_file_among_several_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_text("1\ta\tb\n2\tc\td\n")
    bad.write_text("1\ta\tb\nx\tc\td\n")
    with pytest.raises(InvalidInputError, match=r"bad\.tsv, line 2"):
        read_evaluation([good, bad])


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InvalidInputError, match=r"accuracy needs scipy; install onnxpress\[measure\]"):
        evaluate(embed_at_angles([1, 2]), evaluation([1, 2]))
