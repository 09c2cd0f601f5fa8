"""The result of bench/gpu.py as Markdown, and its place in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import common

BEGIN, END = "<!-- figures of bench.gpu -->", "<!-- end of figures -->"

_ENCODER = (("p50_ms", "ms", ".2f"), ("texts_per_second", "texts/s", ",.0f"))


def shape_name(batch: int, tokens: int) -> str:
    """A shape in a table."""
    return f"{batch} x {tokens}"


def document(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Everything that was found, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    where = f"{facts['gpu'] or facts['cpu']}; {facts['system']}, Python {facts['python']}"
    parts = [
        f"{facts['date'][:10]}, {where}; {versions}.",
        *(_checks(name, found) for name, found in figures["checks"].items()),
        _encoder(figures["encoder"]),
        _decoder(figures["decoder"]),
    ]
    return "\n\n".join(parts)


def _checks(name: str, found: Mapping[str, Any]) -> str:
    nodes = {provider: sum(operators.values()) for provider, operators in found["nodes"].items()}
    counts = ", ".join(f"{count} on {provider}" for provider, count in nodes.items())
    lines = [f"The {name} in FP16: {counts}."]
    if len(nodes) > 1 and "CPUExecutionProvider" in nodes:
        operators = found["nodes"]["CPUExecutionProvider"]
        lines.append("On the CPU: " + ", ".join(f"{count} {kind}" for kind, count in operators.items()) + ".")
    lines.append(
        f"Nodes are in the way of CUDA graphs: {found['captures']}."
        if found["captures"]
        else "No value travels between CPU and GPU inside the graph."
    )
    lines.append(f"Parity over {found['cases']} inputs: {found['sentence']};")
    lines.append(
        f"lowest cosine similarity {found['min_cosine']:.5f}, root mean square error {found['rms_error']:.2g},"
    )
    lines.append(f"bound of the {found['kind']} {found['bound']:g}.")
    return " ".join(lines)


def _encoder(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    whats = list(found["onnxpress"])
    heads = [f"{what}, {unit}" for what in whats for _, unit, _ in _columns(what)]
    rows = [
        [
            f"{answers[what][figure]:{form}}" if what in answers else "-"
            for what in whats
            for figure, _, form in _columns(what)
        ]
        for answers in found.values()
    ]
    return _table("encoder", heads, list(found), rows)


def _columns(what: str) -> tuple[tuple[str, str, str], ...]:
    return _ENCODER[1:] if what == "mixed" else _ENCODER


def _decoder(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    batches = list(next(iter(found.values())))
    heads = [f"{figure} {batch}, tokens/s" for figure in ("prefill", "decode") for batch in batches]
    rows = [
        [f"{answers[batch][figure]:,.0f}" for figure in ("prefill", "decode") for batch in batches]
        for answers in found.values()
    ]
    firsts = [f"{1e3 * answers['1']['first_seconds']:.1f}" for answers in found.values()]
    rows = [[*row, first] for row, first in zip(rows, firsts, strict=True)]
    return _table("decoder", [*heads, "first token, ms"], list(found), rows)


def _table(corner: str, heads: list[str], names: list[str], rows: list[list[str]]) -> str:
    lines = [
        [corner, *heads],
        ["---"] * (len(heads) + 1),
        *([name, *row] for name, row in zip(names, rows, strict=True)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def require_marks(path: Path) -> None:
    """
    Raises:
        BadInputError: the file has no place for the figures.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise common.BadInputError(f"{path} cannot be read: {error.strerror}") from error
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise common.BadInputError(f"{path} has no place for the figures: the lines {BEGIN} and {END}")


def write(path: Path, text: str) -> None:
    """Put the figures between the marks of a file that has them."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
