"""How far a model's numbers and people's go together, in points from -100 to 100. Figures are scipy's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxpress.runtime.evaluation.base import needs


def spearman(found: Sequence[float], gold: Sequence[float]) -> float:
    """Spearman's rank correlation x 100; 0 where it is not defined.

    Raises:
        InvalidInputError: scipy is not installed.
    """
    with needs("scipy"):
        from scipy.stats import spearmanr
    return 100.0 * float(spearmanr(found, gold).statistic) if _is_defined(found, gold) else 0.0


def pearson(found: Sequence[float], gold: Sequence[float]) -> float:
    """Pearson's correlation x 100; 0 where it is not defined.

    Raises:
        InvalidInputError: scipy is not installed.
    """
    with needs("scipy"):
        from scipy.stats import pearsonr
    return 100.0 * float(pearsonr(found, gold).statistic) if _is_defined(found, gold) else 0.0


def _is_defined(found: Sequence[float], gold: Sequence[float]) -> bool:
    """False for a model that says the same for everything, or no number: the figure must not be NaN, which is never
    less than the least that is accepted."""
    return all(map(math.isfinite, found)) and len(set(found)) > 1 and len(set(gold)) > 1
