"""Accuracy of a model on scored examples, in points from 0 to 100. Figures are computed by scipy."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.paths import sha256_of
from onnxpress.runtime.tables import ScoredPair, read_scored_pairs
from onnxpress.runtime.verification import row_cosines

Embed = Callable[[list[str]], npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scored pairs, read and ready, and what they are called in a report."""

    pairs: tuple[ScoredPair, ...]
    files: tuple[str, ...]
    sha256: str
    metric: str = "spearman"
    label: str = "Spearman correlation x 100"

    @property
    def texts(self) -> list[str]:
        """Every sentence, in order."""
        return [text for pair in self.pairs for text in (pair.first, pair.second)]


def read_evaluation(paths: Sequence[Path]) -> Evaluation:
    """Read one or more files of scored sentence pairs; their rows are evaluated together.

    Raises:
        InvalidInputError: a file cannot be used; the text says which line.
    """
    pairs = [pair for path in paths for pair in read_scored_pairs(path)]
    digests = "".join(sha256_of(path) for path in paths)
    return Evaluation(tuple(pairs), tuple(path.name for path in paths), hashlib.sha256(digests.encode()).hexdigest())


def evaluate(embed: Embed, evaluation: Evaluation) -> float:
    """Spearman's rank correlation of cosine similarity with the scores, x 100, as the STS tasks are scored.

    Raises:
        InvalidInputError: scipy is not installed.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError as error:
        raise InvalidInputError("accuracy needs scipy; install onnxpress[measure]") from error
    vectors = embed(evaluation.texts)
    similarities = row_cosines(vectors[0::2], vectors[1::2])
    scores = [pair.score for pair in evaluation.pairs]
    return 100.0 * float(spearmanr(similarities, scores).statistic)
