"""The rules of `--fail-on`, such as "accuracy<-0.5%,latency>+10%": which changes against the base are too much.

    rules   = rule { "," rule }
    rule    = metric ( "<" | ">" ) [ "+" | "-" ] number ( "%" | "pt" )
    metric  = accuracy | agreement | latency | throughput | memory | size | cold_start

A rule names what must not be: a side fails it when its change lies beyond the number. The number is the change in
percent of the base's figure, except of two metrics:

- accuracy counts in points of 100, so `%` and `pt` are the same: `accuracy<-0.5%` fails a model that is right on 90.4 %
  of the examples where the base is on 91 %. Of perplexity it is the change in percent, the sign turned round so that
  less than nothing is worse here too; there are no points of it.
- agreement is a comparison already, so its number is its own value: `agreement<99%`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from onnxpress.runtime.errors import InvalidInputError

MEASURED = ("latency", "throughput", "memory", "cold_start")
"""Metrics that are measured."""
METRICS = ("accuracy", "agreement", "size", *MEASURED)
_RULE = re.compile(r"\s*(\w+)\s*([<>])\s*([+-]?)\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|pt)\s*")
_FORM = 'write a rule as METRIC<NUMBER% or METRIC>NUMBER%, such as "accuracy<-0.5%,latency>+10%"'


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule, as it was written and read."""

    text: str
    metric: str
    comparison: Literal["<", ">"]
    limit: float
    unit: Literal["%", "pt"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a rule says of a side."""

    rule: str
    metric: str
    side: str
    change: float | None
    """In what `rule` counts in. None: the figure could not be had, which fails the rule."""
    unit: str
    """For a person: points or %."""
    passed: bool


def parse_rules(text: str) -> list[Rule]:
    """Read rules.

    Raises:
        InvalidInputError: one is no rule; the text names it.
    """
    return [_rule(part.strip()) for part in text.split(",")]


def _rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{text[:60]!r} is no rule: {_FORM}")
    metric, comparison, sign, number, unit = match.groups()
    if metric not in METRICS:
        raise InvalidInputError(f"{text!r} is about {metric!r}; rules can be about: {', '.join(METRICS)}")
    if unit == "pt" and metric != "accuracy":
        raise InvalidInputError(f"{text!r} counts in points (pt), which only accuracy has; give a percentage")
    if metric == "agreement" and (sign or float(number) > 100):
        raise InvalidInputError(
            f"{text!r}: agreement is a share of 0 to 100 %, not a change; write it without a sign, like agreement<99%"
        )
    limit = float(number) * (-1 if sign == "-" else 1)
    return Rule(text, metric, "<" if comparison == "<" else ">", limit, "pt" if unit == "pt" else "%")


def check_decidable(rules: list[Rule], measured: bool, metric: str | None) -> None:
    """
    Args:
        rules: what is asked.
        measured: whether anything will be timed.
        metric: of the evaluation; None: there is none.

    Raises:
        InvalidInputError: a rule is about what will not be known.
    """
    for rule in rules:
        if rule.metric in MEASURED and not measured:
            raise InvalidInputError(f"the rule {rule.text!r} needs a measurement; leave out --measure none")
        if rule.metric == "accuracy" and metric is None:
            raise InvalidInputError(f"the rule {rule.text!r} needs labelled examples; give --eval FILE")
        if rule.unit == "pt" and metric == "perplexity":
            raise InvalidInputError(f"the rule {rule.text!r} counts in points, perplexity has none; give a percentage")


def apply_rules(rules: list[Rule], side: str, changes: Mapping[str, Any], accuracy_unit: str) -> list[Outcome]:
    """What every rule says of a side.

    Args:
        rules: any number.
        side: its name.
        changes: against the base, by metric.
        accuracy_unit: what accuracy is counted in.
    """
    outcomes = []
    for rule in rules:
        change = changes.get(rule.metric)
        beyond = change is None or (change < rule.limit if rule.comparison == "<" else change > rule.limit)
        unit = accuracy_unit if rule.metric == "accuracy" else "%"
        outcomes.append(Outcome(rule.text, rule.metric, side, change, unit, not beyond))
    return outcomes
