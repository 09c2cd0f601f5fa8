"""What `bench` and `inspect` show of figures measured on this machine, and the lines about a bundle's own figures."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.runtime.bench import Figures
    from onnxpress.runtime.bundle import Bundle


def tell_origin(bundle: Bundle) -> None:
    """Say on stderr, in a line each, that a bundle's figures are of another machine, and which variants' accuracy may
    be."""
    from onnxpress.runtime.origin import saturation_warning, stale_notice

    if (notice := stale_notice(bundle)) is not None:
        print(f"onnxpress: {notice}", file=sys.stderr)
    for variant in bundle.manifest.variants:
        if (warning := saturation_warning(bundle, variant)) is not None:
            print(f"onnxpress: warning: {warning}", file=sys.stderr)


@contextlib.contextmanager
def log_on_stderr() -> Iterator[None]:
    """While inside, what onnxpress logs is said on stderr, such as what `load` says of where figures are from."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "routine", False):  # what was chosen by itself and is as it should be
                return
            level = "warning: " if record.levelno >= logging.WARNING else ""
            print(f"onnxpress: {level}{record.getMessage()}", file=sys.stderr)

    logger, said = logging.getLogger("onnxpress"), Said()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(said)
    try:
        yield
    finally:
        logger.removeHandler(said)
        logger.setLevel(before)


def comparison(bundle: Bundle, figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """A row for each variant: what was measured here, what the bundle says, and how many times as fast it is here."""
    from onnxpress.runtime.bench import bundle_figures
    from onnxpress.runtime.measuring import best_rate

    there = bundle_figures(bundle)
    rows = []
    for here in figures:
        of_bundle = there.get(here.name, {})
        latency = here.latency[0]
        alike = [row for row in of_bundle.get("latency") or [] if row["tokens"] == latency["tokens"]]
        before_ms = alike[0]["p50_ms"] if alike else None
        rate, before_rate = best_rate(here.throughput), best_rate(of_bundle.get("throughput") or [])
        rows.append(
            {
                "name": here.name,
                "created": here.created,
                "tokens": latency["tokens"],
                "latency_ms": latency["p50_ms"],
                "bundle_latency_ms": before_ms,
                "latency_speedup": _ratio(before_ms, latency["p50_ms"]),
                "per_second": rate,
                "bundle_per_second": before_rate,
                "throughput_speedup": _ratio(rate, before_rate) if _same_texts(here.measurement, of_bundle) else None,
                "accuracy": here.accuracy.primary if here.accuracy else None,
                "bundle_accuracy": of_bundle.get("accuracy"),
                "peak_memory_bytes": here.peak_memory_bytes,
            }
        )
    return rows


def bundle_threads(bundle: Bundle) -> int | None:
    """CPU threads that the bundle's own figures were measured with; None where it does not say."""
    from onnxpress.runtime.bench import bundle_figures

    measured = [row["measurement"] for row in bundle_figures(bundle).values() if row["measurement"]]
    return measured[0].get("threads") if measured else None


def table(rows: Sequence[Mapping[str, Any]], is_decoder: bool) -> list[str]:
    """Lines of text."""
    unit, first = ("tokens/s", "first ms") if is_decoder else ("texts/s", "ms")
    columns = [
        ("variant", [str(row["name"]) for row in rows]),
        (f"{first} here", _column(rows, "latency_ms", ".2f")),
        ("bundle", _column(rows, "bundle_latency_ms", ".2f")),
        ("speed", _column(rows, "latency_speedup", ".2f", "x")),
        (f"{unit} here", _column(rows, "per_second", ",.0f")),
        ("bundle", _column(rows, "bundle_per_second", ",.0f")),
        ("speed", _column(rows, "throughput_speedup", ".2f", "x")),
        ("accuracy here", _column(rows, "accuracy", ".2f")),
        ("bundle", _column(rows, "bundle_accuracy", ".2f")),
        ("RAM MB", [_number((row["peak_memory_bytes"] or 0) / 1e6 or None, ",.0f") for row in rows]),
    ]
    widths = [max(len(heading), *map(len, cells)) for heading, cells in columns]
    lines = [[heading for heading, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def _same_texts(here: Mapping[str, Any], of_bundle: Mapping[str, Any]) -> bool:
    """Whether throughput was measured on the same texts, or prompts: only then do the two compare."""
    there = of_bundle.get("measurement") or {}
    return all(here.get(key) == there.get(key) for key in ("texts", "tokens_mean", "tokens_max", "prompt_tokens"))


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 3) if above and below else None


def _column(rows: Sequence[Mapping[str, Any]], key: str, form: str, unit: str = "") -> list[str]:
    return [_number(row[key], form, unit) for row in rows]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
