"""Two or more models for one task side by side on the same data: accuracy, agreement, cost, and what has changed.

No torch: sides that need it are made in exporter/comparing.py. What comes out is JSON data (docs/comparing.md), which
summary.py, markdown.py and exporter/page/comparison.py make readable.
"""

from __future__ import annotations

from onnxpress.runtime.comparing.comparison import Options, compare
from onnxpress.runtime.comparing.rules import Rule, parse_rules
from onnxpress.runtime.comparing.sides import Side, bundle_side, check_sides

__all__ = ["Options", "Rule", "Side", "bundle_side", "check_sides", "compare", "parse_rules"]
