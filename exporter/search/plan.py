"""What a search tries, in which order, and when it stops. Knows nothing of graphs: what is tried is made and measured
by a `Bench`.

Graphs of one precision come first. Where none holds that is about as cheap as the cheapest, nodes are raised: one,
two, four, ... of the moves that help most for what they cost, until the accuracy holds, and by halving the last
interval the fewest of them. Then single moves are taken back, the most expensive first, as long as the accuracy holds
without them. The cheapest trial that holds is checked on the examples that were held out; where it fails there, more
precise ones are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from onnxpress.exporter.search.moves import Assignment, Ladder, undone
from onnxpress.quantize.mixed import FLOAT32

_WORTH_UNDOING = 0.002  # of float32's time: less does not show


class OutOfTimeError(Exception):
    """The search's budget is spent."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A mixture that was made and measured."""

    name: str
    assignment: Mapping[str, str]
    cost: float
    """By the objective, as a share of what float32 costs."""
    divergence: float
    holds: bool
    """Whether it keeps the limit on the examples to search with, and passes the gate's comparison."""
    figures: Mapping[str, Any]
    """All that was measured, for the report."""

    @property
    def eligible(self) -> bool:
        """Whether it is of any use: float32 is the answer where nothing is cheaper."""
        return self.holds and self.cost < 1.0


class Bench(Protocol):
    """Makes and measures."""

    trials: list[Trial]
    """All so far, each once."""
    spread: float
    """Costs that differ by a smaller share than this count as equal: repeated measurements differ by as much."""

    def measure(self, assignment: Assignment, name: str | None = None) -> Trial:
        """Make a mixture and measure it, or say what was found before; the name of a new one without a name is the
        bench's choice.

        Raises:
            OutOfTimeError: it was not known, and the budget is spent.
        """

    def ladder(self) -> Ladder:
        """The moves.

        Raises:
            OutOfTimeError: they are not known, and the budget is spent.
        """

    def accepts(self, trial: Trial) -> bool:
        """Whether it also holds on the examples held out."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search found."""

    accepted: Trial | None
    ended: str
    """`done`, `budget` or `interrupt`."""


def run_plan(bench: Bench, uniform: Callable[[], Mapping[str, Assignment]]) -> Outcome:
    """Search.

    Args:
        bench: makes and measures.
        uniform: gives the graphs of one precision, by name.
    """
    ended = "done"
    try:
        _explore(bench, uniform)
    except OutOfTimeError:
        ended = "budget"
    except KeyboardInterrupt:  # whoever watches has seen enough: the best so far is the answer
        ended = "interrupt"
    try:
        return Outcome(_accepted(bench, explore=ended == "done"), ended)
    except OutOfTimeError:
        return Outcome(None, "budget")


def _explore(bench: Bench, uniform: Callable[[], Mapping[str, Assignment]]) -> None:
    trials = [bench.measure(assignment, name) for name, assignment in uniform().items()]
    cheapest, best = min(trial.cost for trial in trials), _best(bench, trials)
    if cheapest < (1.0 if best is None else (1 - bench.spread) * best.cost):
        _refine(bench, bench.ladder(), _raise(bench, bench.ladder()))


def _raise(bench: Bench, ladder: Ladder) -> int | None:
    """The fewest moves after which the accuracy holds, if any; None where it never does at a gain."""
    low, high, step = 0, len(ladder.moves), 1  # all of them make float32
    if bench.measure(ladder.after(0)).eligible:
        return 0
    found: int | None = None
    while high - low > 1:
        bracketed = high < len(ladder.moves)
        count = (low + high) // 2 if bracketed else min(low + step, high - 1)
        trial = bench.measure(ladder.after(count))
        if trial.holds:
            high = count
            found = count if trial.eligible else found
        else:
            low, step = count, 2 * step
            best = _best(bench, bench.trials)
            if best is not None and trial.cost >= best.cost:  # with more moves it costs even more
                break
    return found


def _refine(bench: Bench, ladder: Ladder, count: int | None) -> None:
    """Take moves back that were not needed, the most expensive first."""
    if not count:
        return
    best = bench.measure(ladder.after(count))
    for move in sorted(ladder.moves[:count], key=lambda move: move.price, reverse=True):
        if move.price < _WORTH_UNDOING:
            break
        if best.assignment.get(move.node, FLOAT32) != move.precision:  # raised further since
            continue
        trial = bench.measure(undone(best.assignment, move))
        if trial.eligible and trial.cost < best.cost:
            best = trial


def _best(bench: Bench, trials: Sequence[Trial]) -> Trial | None:
    """The cheapest that is of use; of those that cost as much, the one nearest to float32."""
    able = [trial for trial in trials if trial.eligible]
    least = min((trial.cost for trial in able), default=0.0)
    equal = (trial for trial in able if trial.cost * (1 - bench.spread) <= least)
    return min(equal, key=lambda trial: (trial.divergence, trial.cost), default=None)


def _accepted(bench: Bench, explore: bool) -> Trial | None:
    """The cheapest trial that holds on the held-out examples too. After one that does not only more precise ones are
    considered, so that chance has few tries: those that are there already, then, if `explore`, ones raised further."""
    trial, step = _best(bench, bench.trials), 1
    while trial is not None:
        if bench.accepts(trial):
            return trial
        failed = trial
        trial = _best(bench, [known for known in bench.trials if known.divergence < failed.divergence])
        while trial is None and explore:
            assignment = bench.ladder().raised(failed.assignment, step)
            if not assignment:
                return None
            step *= 2
            raised = bench.measure(assignment)
            if raised.cost >= 1.0:
                return None
            if raised.eligible:
                trial = raised
            failed = raised
    return None
