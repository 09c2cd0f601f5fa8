"""The figures of a report, read so that anything may be missing, and written as people read them.

Knows report.json (docs/bundle.md), nothing about HTML.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
MB = 1e6
Report = Mapping[str, Any]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SHORT_TEXT_TOKENS = (16, 32)
"""Latency is quoted for a length in or next to this range: a sentence or two, the common request of a service."""
_METRICS = {
    "accuracy": ("accuracy", "%"),
    "macro_f1": ("macro F1", "x 100"),
    "f1": ("F1", "x 100"),
    "precision": ("precision", "%"),
    "recall": ("recall", "%"),
    "exact_match": ("exact match", "%"),
    "mrr_at_10": ("MRR@10", "x 100"),
    "ndcg_at_10": ("nDCG@10", "x 100"),
    "top_1": ("top-1", "%"),
    "top_5": ("top-5", "%"),
    "spearman": ("Spearman", "x 100"),
    "pearson": ("Pearson", "x 100"),
    "perplexity": ("perplexity", ""),
}
"""Keys of figures (runtime/evaluation) to their names and units."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of the evaluation."""

    key: str
    name: str
    """As it stands in a sentence."""
    unit: str
    primary: bool
    """Whether variants are judged by it."""

    @property
    def title(self) -> str:
        """The name at the start of a heading."""
        return capitalized(self.name)


@dataclasses.dataclass(frozen=True)
class Series:
    """One row of every comparison: the baseline or a variant."""

    name: str
    status: str
    """`reference` for the baseline, else the variant's."""
    default: bool
    data: Mapping[str, Any]

    @property
    def is_baseline(self) -> bool:
        """Whether this is what variants are compared with."""
        return self.status == "reference"

    @property
    def label(self) -> str:
        """The name, and whether it is the default."""
        return f"{self.name} (default)" if self.default else self.name

    def figure(self, key: str) -> float | None:
        """A figure, None if it was not measured or the variant failed."""
        return None if self.status == "failed" else figure(self.data, key)

    def metric(self, metric: Metric) -> float | None:
        """A figure of the evaluation, None if it was not evaluated or the variant failed."""
        if metric.primary:
            return self.figure("accuracy")
        return None if self.status == "failed" else figure(part(self.data, "metrics"), metric.key)

    def latency(self, tokens: int | None) -> Mapping[str, Any]:
        """The row of `latency` for one text of that many tokens, empty if there is none."""
        return next((row for row in self._rows("latency") if tokens is not None and _length(row) == tokens), {})

    def throughput(self, batch: int) -> float | None:
        """Texts a second at a batch size; of a decoder, new tokens."""
        rows = (row for row in self._rows("throughput") if row.get("batch") == batch)
        return next((_rate(row) for row in rows), None)

    def best_throughput(self) -> float | None:
        """The same at the batch size that suits it best."""
        rates = [_rate(row) for row in self._rows("throughput")]
        return max((rate for rate in rates if rate is not None), default=None)

    def lengths(self) -> set[int]:
        """Numbers of tokens whose latency was measured."""
        return {length for row in self._rows("latency") if (length := _length(row)) is not None}

    def batches(self) -> set[int]:
        """Batch sizes whose throughput was measured."""
        return {row["batch"] for row in self._rows("throughput") if isinstance(row.get("batch"), int)}

    def _rows(self, key: str) -> Sequence[Mapping[str, Any]]:
        return [] if self.status == "failed" else self.data.get(key) or []


def all_series(report: Report) -> list[Series]:
    """The baseline, if there is one, and every variant."""
    baseline = report.get("baseline")
    rows = []
    if baseline is not None:
        name = str(baseline.get("name") or "PyTorch").removeprefix("the ")
        rows.append(Series(name, "reference", False, baseline))
    chosen = part(report, "default").get("variant")
    for variant in report.get("variants") or []:
        status = str(variant.get("status") or "unverified")
        is_default = status != "failed" and chosen is not None and variant.get("name") == chosen
        rows.append(Series(str(variant.get("name")), status, is_default, variant))
    return rows


def default_series(report: Report) -> Series | None:
    """The default variant."""
    return next((row for row in all_series(report) if row.default), None)


def baseline_series(report: Report) -> Series | None:
    """What variants are compared with."""
    return next((row for row in all_series(report) if row.is_baseline), None)


def reference(report: Report) -> str:
    """What variants are compared with, as a sentence names it: PyTorch, or the baseline's own name."""
    name = str(part(report, "baseline").get("name") or "PyTorch")
    return "PyTorch" if name.startswith("PyTorch") else name


def metrics(report: Report) -> list[Metric]:
    """Figures of the evaluation, the primary one first; none without an evaluation."""
    if not report.get("evaluation"):
        return []
    evaluation = part(report, "evaluation")
    primary = str(evaluation.get("metric") or "accuracy")
    name, unit = _METRICS.get(primary, (primary.replace("_", " "), ""))
    label = str(evaluation.get("label") or "")
    if name in label:  # entity F1 x 100: says which F1, and its unit
        before, unit = label.split(name, 1)
        name, unit = f"{before}{name}", unit.lstrip(", ")
    elif label:
        unit = label
    keys = dict.fromkeys(key for row in all_series(report) for key in part(row.data, "metrics") if key != primary)
    others = [(key, *_METRICS.get(key, (key.replace("_", " "), ""))) for key in keys]
    return [Metric(primary, name, unit, primary=True), *(Metric(*other, primary=False) for other in others)]


def changed_answers(report: Report, row: Series) -> str | None:
    """12 of 872: examples of the evaluation that a variant answers otherwise than the baseline."""
    count, samples = row.figure("changed_answers"), figure(part(report, "evaluation"), "samples")
    return None if count is None or samples is None else f"{count:,.0f} of {samples:,.0f}"


def compares_logits(report: Report) -> bool:
    """Whether parity is about the logits of a head, not about the directions of embeddings."""
    return part(report, "model").get("task") not in (None, "feature-extraction")


def accuracy(report: Report, row: Series) -> float | None:
    """What the accuracy axis shows: the evaluation's primary figure, without one the agreement with the baseline."""
    if report.get("evaluation"):
        return row.figure("accuracy")
    return 1.0 if row.is_baseline else row.figure("agreement")


def accuracy_decimals(report: Report) -> int:
    """How many decimals of `accuracy` are shown, and so count."""
    return 2 if report.get("evaluation") else 4


def accuracy_drop(report: Report, row: Series) -> float | None:
    """Points a variant loses against the baseline; negative if it gains."""
    if (drop := row.figure("accuracy_drop")) is not None or row.is_baseline:
        return drop
    baseline = baseline_series(report)
    before, after = baseline.figure("accuracy") if baseline else None, row.figure("accuracy")
    if before is None or after is None:
        return None
    if lower_is_better(report):
        return 100 * (after / before - 1) if before else None
    return before - after


def drop_interval(report: Report, row: Series) -> tuple[float, float] | None:
    """Where the drop lies with 95 % confidence, if that is known."""
    found = {} if row.status == "failed" else part(row.data, "accuracy_interval")
    low, high = figure(found, "low"), figure(found, "high")
    if low is None or high is None:
        return None
    return (low, high) if lower_is_better(report) else (-high, -low)


def reference_tokens(report: Report) -> int | None:
    """The measured length nearest to a short text's, for which latency is quoted; of decoders the length of the prompts
    after which they wrote. None if none was measured."""
    low, high = _SHORT_TEXT_TOKENS
    lengths = {length for row in all_series(report) for length in row.lengths()}
    after = part(report, "measurement").get("prompt_tokens")
    if after in lengths:
        return int(after)
    return min(lengths, key=lambda length: (max(low - length, 0, length - high), length), default=None)


def writes(report: Report) -> bool:
    """Whether the model is a decoder: its latency is that of the first token, its throughput counts new tokens."""
    return part(report, "model").get("task") == "text-generation"


def lower_is_better(report: Report) -> bool:
    """Whether less of the accuracy axis is more."""
    return part(report, "evaluation").get("metric") == "perplexity"


def loss_unit(report: Report) -> str:
    """What an accuracy drop is counted in."""
    return "%" if lower_is_better(report) else "points"


def token_milliseconds(row: Series) -> float | None:
    """What a new token of one request takes a decoder."""
    rate = row.throughput(1)
    return 1000 / rate if rate else None


def part(report: Report, key: str) -> Mapping[str, Any]:
    """A nested object, empty if it is missing."""
    value = report.get(key)
    return value if isinstance(value, Mapping) else {}


def figure(data: Mapping[str, Any], key: str) -> float | None:
    """A finite number, None for anything else."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _rate(row: Mapping[str, Any]) -> float | None:
    texts = figure(row, "texts_per_second")
    return figure(row, "tokens_per_second") if texts is None else texts


def _length(row: Mapping[str, Any]) -> int | None:
    tokens = row.get("tokens")
    return tokens if isinstance(tokens, int) and row.get("batch", 1) == 1 else None


def number(value: float | None, decimals: int) -> str:
    """1,640 or 22.9 or 0.41: with fixed decimals, so that columns align; more where only zeros would be left."""
    if value is None:
        return MISSING
    shown = f"{value:,.{decimals}f}"
    if value != 0 and abs(value) < 0.5 * 10**-decimals:
        shown = f"{value:.2g}" if abs(value) >= 1e-4 else scientific(value)
    return shown.replace("-", "−")


def fixed(value: float | None, decimals: int) -> str:
    """The same without more decimals for what is small: a drop of 0.0004 points is none."""
    return number(None if value is None else round(value, decimals) + 0.0, decimals)  # + 0.0: no minus before zero


def significant(value: float | None) -> str:
    """About three digits: 1,640 or 61.2 or 9.10."""
    if value is None:
        return MISSING
    return number(value, 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2)


def scientific(value: float | None) -> str:
    """Differences span many magnitudes: 0.0132 but 2.0×10⁻⁷."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1000:
        return f"{value:#.3g}".removesuffix(".").replace("-", "−")
    digits, exponent = f"{value:.1e}".split("e")
    shown = f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return shown.replace("-", "−")


def megabytes(value: float | None) -> float | None:
    """Bytes as MB."""
    return None if value is None else value / MB


def signed(value: float, decimals: int) -> str:
    """A change, with its sign; 0.00 has none."""
    shown = f"{value:+,.{decimals}f}".replace("-", "−")
    return shown[1:] if not shown.strip("+−0.") else shown


def capitalized(text: str) -> str:
    """The text as the start of a sentence; nDCG@10 and the like stay as they are."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def moment(created: object) -> str:
    """24 November 2026, 03:30 UTC."""
    try:
        when = datetime.datetime.fromisoformat(str(created))
    except ValueError:
        return str(created)
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    when = when.astimezone(datetime.UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"
