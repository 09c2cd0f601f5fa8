"""In which order nodes are raised to more bits: what most reduces the divergence for what it costs comes first.

Each node may have several forms: that of each quantized graph, and float32. A form has a price, the node's part in the
time or size of the whole graph, and a divergence, that of the outputs when the node alone has it (quantize/
sensitivity.py). Divergences of several nodes add up, nearly enough to order by them. From a node's cheapest form on,
only those forms are worth taking that lie on the lower convex hull of its prices and divergences; a move is a step
along it. Moves of all nodes are sorted by their slopes: the greedy solution of a knapsack with a choice for each node,
which is the best one but for its last move (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from onnxpress.quantize.mixed import FLOAT32
from onnxpress.quantize.sensitivity import NodeSensitivity, Sensitivity

Assignment = Mapping[str, str]
"""Names of nodes to precisions; nodes that are not mentioned are in float32."""
_LEAST_PRICE = 1e-9  # a node without multiplications takes a little time, too


@dataclasses.dataclass(frozen=True)
class Move:
    """Raise one node."""

    node: str
    precision: str
    """What it then has."""
    before: str
    """What it had."""
    price: float
    """What that costs, as a share of float32's time or size."""
    gain: float
    """By how much the divergence falls."""


@dataclasses.dataclass(frozen=True)
class _Form:
    precision: str
    price: float
    divergence: float


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Where a search begins, and its moves, the best first."""

    start: dict[str, str]
    moves: tuple[Move, ...]

    def after(self, count: int) -> dict[str, str]:
        """The assignment after so many moves."""
        assignment = dict(self.start)
        for move in self.moves[:count]:
            _set(assignment, move.node, move.precision)
        return assignment

    def raised(self, assignment: Assignment, count: int) -> dict[str, str]:
        """An assignment, also one that is not on the ladder, with the best `count` moves that raise it."""
        result = dict(assignment)
        for move in self.moves:
            if count == 0:
                break
            if self._level(move.node, result.get(move.node, FLOAT32)) < self._level(move.node, move.precision):
                _set(result, move.node, move.precision)
                count -= 1
        return result

    def _level(self, node: str, precision: str) -> int:
        steps = [self.start.get(node, FLOAT32), *(move.precision for move in self.moves if move.node == node)]
        # A form that is not on the hull lies below all of its moves.
        return steps.index(precision) if precision in steps else 0


def undone(assignment: Assignment, move: Move) -> dict[str, str]:
    """An assignment without one of its moves."""
    result = dict(assignment)
    _set(result, move.node, move.before)
    return result


def _set(assignment: dict[str, str], node: str, precision: str) -> None:
    if precision == FLOAT32:
        assignment.pop(node, None)
    else:
        assignment[node] = precision


def make_ladder(sensitivities: Sequence[Sensitivity], times: Mapping[str, float] | None) -> Ladder:
    """Order the moves.

    Args:
        sensitivities: of each quantized graph.
        times: of each precision, the time of its whole graph as a share of float32's; None: what counts is the size of
            the weights.
    """
    forms: dict[str, list[_Form]] = {}
    for found in sensitivities:
        total = sum(_weight(node, times) for node in found.nodes) or 1.0
        for measured in found.nodes:
            share = _weight(measured, times) / total
            if measured.node not in forms:
                forms[measured.node] = [_Form(FLOAT32, share + _LEAST_PRICE, 0.0)]
            smaller = measured.size_bytes / max(1, measured.float32_bytes)
            price = share * (smaller if times is None else times[found.precision])
            forms[measured.node].append(_Form(found.precision, price, measured.divergence))
    start: dict[str, str] = {}
    moves: list[Move] = []
    for node, able in forms.items():
        hull = _hull(able)
        _set(start, node, hull[0].precision)
        for before, after in itertools.pairwise(hull):
            price, gain = after.price - before.price, before.divergence - after.divergence
            moves.append(Move(node, after.precision, before.precision, price, gain))
    moves.sort(key=lambda move: move.gain / move.price, reverse=True)
    return Ladder(start, tuple(moves))


def _weight(node: NodeSensitivity, times: Mapping[str, float] | None) -> float:
    return float(node.float32_bytes if times is None else node.multiply_adds)


def _hull(forms: Sequence[_Form]) -> list[_Form]:
    """The forms on the lower convex hull, the cheapest first: with each, the divergence falls less for its price."""
    hull: list[_Form] = []
    for form in sorted(forms, key=lambda form: (form.price, form.divergence)):
        if hull and form.divergence >= hull[-1].divergence:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], form):
            hull.pop()
        hull.append(form)
    return hull


def _slope(a: _Form, b: _Form) -> float:
    """By how much the divergence falls for a unit of price."""
    return (a.divergence - b.divergence) / max(b.price - a.price, 1e-12)
