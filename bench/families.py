"""Every family of encoders with every head, pressed from a tiny random model: what passes the gate, and how closely.

`python -m bench.families [--family NAME ...] [--output docs/families.md]`. Two layers with weights of standard
deviation 0.3: large enough that broken positions or masks show, far larger than in trained models, so that differences
are upper bounds. Nothing is timed but the export.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import common

TASKS = (
    "feature-extraction",
    "text-classification",
    "text-ranking",
    "token-classification",
    "question-answering",
    "fill-mask",
)
PRECISIONS = ("fp32", "fp16", "int8")
ALL_HEADS = 15
"""So many families of tests/models.py are tried with every head, the others as embedders."""


_TITLE = """\
# Families and heads

Written by `python -m bench.families --output docs/families.md`. Each row is a tiny random model (two layers, weights
with a standard deviation of 0.3) pressed into a bundle with three variants and compared with PyTorch. FP32: the largest
difference of any number. FP16 and INT8 of embeddings: that and the lowest cosine similarity; of logits: that and the
largest root mean square error, in units of the logits' own. Bold: did not pass the gate and is not in the bundle.
Trained models are far easier to quantize than these. Decoders that write text: [generation.md](generation.md).

{date}, {machine}, {versions}.

| family | task | export s | fp32 | fp16 | int8 | KB |
|---|---|---:|---|---|---|---|"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One model: a family with a head."""

    family: str
    task: str
    seconds: float | None
    """From the folder to the sealed bundle, three variants, gate included, nothing measured."""
    variants: dict[str, dict[str, Any]]
    refusal: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Press, print and write the page."""
    parser = argparse.ArgumentParser(prog="bench.families", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--family", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--task", action="append", choices=TASKS, help="only this head; may be repeated")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the page there")
    options = parser.parse_args(arguments)
    facts = common.record()
    common.show_record(facts)
    rows = []
    for family, task in _cells(options.family, options.task):
        rows.append(press(family, task))
        print(_line(rows[-1]), flush=True)
    if options.output:
        options.output.write_text(render(rows, facts), encoding="utf-8")
    failed = [row for row in rows if row.refusal or any(cell["failure"] for cell in row.variants.values())]
    print(json.dumps({"benchmark": "families", "models": len(rows), "with_a_failed_cell": len(failed)}))
    return 0


def _cells(families: Sequence[str] | None, tasks: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    from tests.models import FAMILIES

    for index, family in enumerate(FAMILIES):
        if families and family not in families:
            continue
        for task in tasks or TASKS:
            if tasks or families or index < ALL_HEADS or task == TASKS[0]:
                yield family, task


def press(family: str, task: str) -> Row:
    """Make a tiny model of a family for a task and export it."""
    import onnxpress
    from tests.models import make_model

    with tempfile.TemporaryDirectory() as folder:
        try:
            model = make_model(Path(folder) / family, family, task)
        # transformers has no such head for the family; its auto classes say so by ValueError.
        except ValueError:
            return Row(family, task, None, {}, "transformers has no such head")
        config = onnxpress.ExportConfig(task=task, measure="none", cache=False)
        start = time.perf_counter()
        try:
            report = onnxpress.export(model, Path(folder) / "bundle", config).report
        except onnxpress.OnnxpressError as error:
            return Row(family, task, time.perf_counter() - start, {}, str(error).replace(folder, ""))
        seconds = time.perf_counter() - start
    return Row(family, task, seconds, {variant["name"]: variant for variant in report["variants"]})


def _line(row: Row) -> str:
    cells = [f"{name} {_cell(row.variants[name])}" for name in PRECISIONS if name in row.variants]
    seconds = "-" if row.seconds is None else f"{row.seconds:.1f} s"
    return f"{row.family:<22} {row.task:<22} {seconds:>7}  {row.refusal or '  '.join(cells)}"


def _cell(variant: dict[str, Any]) -> str:
    """Largest difference, and the error of the gate's own kind where that is another."""
    parity = variant["parity"]
    if parity is None or parity["max_abs_difference"] is None:
        return "not made" if parity is None else "does not run"
    difference = f"{parity['max_abs_difference']:.1g}"
    if parity["kind"] == "cosine":
        difference += f" (cosine {parity['min_cosine']:.4f})"
    if parity["kind"] == "rms":
        difference += f" (rms {parity['rms_error']:.2g})"
    return difference


def render(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    """The page, in Markdown."""
    notes: list[str] = []
    machine = f"{facts['cpu']}, {facts['cores']} cores"
    title = _TITLE.format(date=facts["date"][:10], machine=machine, versions=_versions(facts))
    lines = [title, *(_markdown(row, notes) for row in rows)]
    if notes:
        lines += ["", "Why a cell did not pass:", "", *(f"{index}. {note}" for index, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _markdown(row: Row, notes: list[str]) -> str:
    if row.refusal:
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        return f"| {row.family} | {row.task} | {seconds} | {row.refusal} | | | |"
    cells, sizes = [], []
    for name in PRECISIONS:
        variant = row.variants[name]
        if variant["failure"]:
            notes.append(f"{row.family}, {row.task}, {name}: {variant['failure']}")
            cells.append(f"**{_cell(variant)}** ({len(notes)})")
        else:
            cells.append(_cell(variant))
            sizes.append(f"{variant['size_bytes'] / 1e3:.0f}")
    return f"| {row.family} | {row.task} | {row.seconds:.1f} | {' | '.join(cells)} | {' / '.join(sizes)} |"


def _versions(facts: dict[str, Any]) -> str:
    names = ("onnxruntime", "torch", "transformers", "onnx")
    return ", ".join(f"{name} {facts['versions'][name]}" for name in names if name in facts["versions"])


if __name__ == "__main__":
    sys.exit(main())
