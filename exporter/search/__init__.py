"""The step that searches: which nodes of a graph may be of few bits, so that it is fastest and holds the accuracy asked
for (docs/search.md).

splits.py cuts the evaluation in two, moves.py orders what can be raised, plan.py decides what to try, trials.py makes
and measures it, limits.py says what must hold, step.py does the whole of it for an export.
"""

from __future__ import annotations

from onnxpress.exporter.search.step import search

__all__ = ["search"]
