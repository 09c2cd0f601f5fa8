"""Every pass of quantize/ on encoders of several families: does the result load, how close is it, how small.

`python -m bench.passes [--family NAME ...] [--output docs/passes.md]`. Tiny random models as in bench/families.py, and
all-MiniLM-L6-v2 where its package is installed. A pass more is an entry in `PASSES`. Nothing is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import common

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")
MINILM = "all-MiniLM-L6-v2"

_TITLE = """\
# Passes and families

Written by `python -m bench.passes --output docs/passes.md`. Each pass of `quantize/` makes a graph of each model, which
onnxruntime then loads and runs on the CPU on the inputs that variants are verified on (real texts and random tokens,
padded right, left and whole). The families are tiny random models (two layers, weights with a standard deviation of
0.3), far harder to quantize than trained ones; all-MiniLM-L6-v2 is trained and whole. What is calibrated, is on these
inputs too.

{date}, {machine}, {versions}."""

_PARITY = """\
## How close

The embeddings against those of PyTorch in float32: root mean square of the differences / that of the values; largest
difference, in units of max(1, largest value); lowest cosine similarity of an embedding."""

_SIZE = """\
## How small

Bytes of the graph and its weights, in percent of float32."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to try passes on."""

    name: str
    graph: Path
    """float32"""
    cases: Sequence[Any]
    """`Case`s, with what PyTorch gives."""

    @property
    def feeds(self) -> list[Any]:
        """Inputs to calibrate on."""
        return [case.feeds for case in self.cases]


Apply = Callable[[Subject, Path], Any]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One row."""

    name: str
    apply: Apply
    """Writes the graph of a subject to a path."""
    runs_on_cpu: bool = True
    """Where it does not, the graph's structure is checked alone."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What came of a pass on a subject."""

    size: float = 0.0
    """Share of the float32 graph's bytes."""
    rms: float | None = None
    largest: float | None = None
    cosine: float | None = None
    failure: str = ""


def _half(dtype: Any) -> Apply:
    def apply(subject: Subject, target: Path) -> Any:
        from onnxpress.quantize.fp16 import Fp16Config, convert_fp16

        return convert_fp16(subject.graph, target, subject.feeds, Fp16Config(dtype=dtype))

    return apply


def _dynamic(tamed: bool) -> Apply:
    def apply(subject: Subject, target: Path) -> Any:
        from onnxpress.quantize.int8_dynamic import candidates, quantize_int8_dynamic
        from onnxpress.runtime.machine import describe_machine

        config = next(one for one in candidates(describe_machine()) if bool(one.outliers) == tamed)
        return quantize_int8_dynamic(subject.graph, target, config, subject.feeds)

    return apply


def _static(method: Any, migrated: bool = False, tables: bool = False, **changes: Any) -> Apply:
    def apply(subject: Subject, target: Path) -> Any:
        from onnxpress.quantize.int8_static import candidates, quantize_int8_static
        from onnxpress.quantize.migration import MigrationConfig
        from onnxpress.runtime.machine import describe_machine

        (config,) = candidates(describe_machine(), [method], [MigrationConfig() if migrated else None])
        config = dataclasses.replace(config, **changes)
        if not tables:
            return quantize_int8_static(subject.graph, target, config, subject.feeds)
        products = target.with_name("products.onnx")
        quantize_int8_static(subject.graph, products, config, subject.feeds)
        return _tables(dataclasses.replace(subject, graph=products), target)

    return apply


def _tables(subject: Subject, target: Path) -> Any:
    from onnxpress.quantize.embedding_tables import EmbeddingConfig, quantize_embedding_tables

    return quantize_embedding_tables(subject.graph, target, EmbeddingConfig(smallest_bytes=4096))


def _weights(bits: int) -> Apply:
    def apply(subject: Subject, target: Path) -> Any:
        from onnxpress.quantize.weight_only import WeightOnlyConfig, quantize_weights

        return quantize_weights(subject.graph, target, WeightOnlyConfig(bits=bits))

    return apply


def _mixed(subject: Subject, target: Path) -> Any:
    from onnxpress.quantize.mixed import MixedConfig, mix_precisions, quantized_nodes

    parts = {name: target.with_name(f"{name}.onnx") for name in ("int8", "int8-static", "int4")}
    _dynamic(tamed=False)(subject, parts["int8"])
    _static("minmax", migrated=True)(subject, parts["int8-static"])
    _weights(4)(subject, parts["int4"])
    nodes = quantized_nodes(subject.graph, parts["int8-static"])
    precisions = itertools.cycle(["int8", "int8-static", "int4", "fp16", "fp32"])
    assignment = dict(zip(nodes, precisions, strict=False))
    return mix_precisions(subject.graph, parts, MixedConfig(assignment), target)


PASSES: tuple[Pass, ...] = (
    Pass("fp16", _half("float16")),
    Pass("bf16 (structure)", _half("bfloat16"), runs_on_cpu=False),
    Pass("int8 dynamic", _dynamic(tamed=False)),
    Pass("int8 dynamic, outlier channels tamed", _dynamic(tamed=True)),
    Pass("int8 static, minmax", _static("minmax")),
    Pass("int8 static, minmax, per tensor", _static("minmax", per_channel=False)),
    Pass("int8 static, minmax, symmetric", _static("minmax", symmetric=True)),
    Pass("int8 static, percentile 99.99", _static("percentile")),
    Pass("int8 static, entropy", _static("entropy")),
    Pass("int8 static, minmax, scales migrated", _static("minmax", migrated=True)),
    Pass("int8 static, percentile 99.99, scales migrated", _static("percentile", migrated=True)),
    Pass("embedding tables in int8", _tables),
    Pass("int8 static, minmax, scales migrated, and embedding tables", _static("minmax", migrated=True, tables=True)),
    Pass("int8 weights", _weights(8)),
    Pass("int4 weights", _weights(4)),
    Pass("mixed: products by turns in int8, int8-static, int4, fp16, fp32", _mixed),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write the page."""
    parser = argparse.ArgumentParser(prog="bench.passes", description=(__doc__ or "").split("\n", 1)[0])
    names = (*FAMILIES, MINILM)
    parser.add_argument("--family", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the page there")
    options = parser.parse_args(arguments)
    facts = common.record()
    common.show_record(facts)
    table: dict[str, dict[str, Cell]] = {}
    for name in options.family or names:
        with tempfile.TemporaryDirectory() as folder:
            subject = make_subject(name, Path(folder))
            if subject is None:
                print(f"{name}: the package with its weights is not installed", file=sys.stderr)
                continue
            table[name] = {one.name: try_pass(one, subject, Path(folder)) for one in PASSES}
        for one, cell in table[name].items():
            print(f"{name:<18} {one:<68} {_parity(cell)}  {_size(cell)}", flush=True)
    if options.output:
        options.output.write_text(render(table, facts), encoding="utf-8")
    failed = [cell for cells in table.values() for cell in cells.values() if cell.failure]
    print(json.dumps({"benchmark": "passes", "cells": sum(map(len, table.values())), "failed": len(failed)}))
    return 1 if failed else 0


def make_subject(name: str, folder: Path) -> Subject | None:
    """Make and trace the embedder of a family, or MiniLM where it is installed."""
    from tests.graphs import trace_folder
    from tests.models import make_model

    if name == MINILM:
        from onnxpress.exporter.recipe import read_recipe

        recipe = read_recipe(MINILM)
        model = recipe.installed_folder() if recipe else None
        if model is None:
            return None
    else:
        model = make_model(folder / "model", name)
    traced = trace_folder(model, folder)
    return Subject(name, traced.path, traced.cases)


def try_pass(one: Pass, subject: Subject, folder: Path) -> Cell:
    """Apply a pass, and load and run what it writes."""
    from onnxpress.quantize.graphs import check_structure
    from onnxpress.runtime.errors import OnnxpressError

    with tempfile.TemporaryDirectory(dir=folder) as place:
        target = Path(place) / "model.onnx"
        try:
            one.apply(subject, target)
            size = _bytes(target) / _bytes(subject.graph)
            if not one.runs_on_cpu:
                check_structure(target)
                return Cell(size)
            return dataclasses.replace(_compare(target, subject), size=size)
        except OnnxpressError as error:
            return Cell(failure=str(error).replace(place, ""))


def _compare(graph: Path, subject: Subject) -> Cell:
    from onnxpress.runtime.manifest import SessionSettings
    from onnxpress.runtime.session import make_session
    from onnxpress.runtime.settings import ServingSettings
    from onnxpress.runtime.verification import row_cosines

    session = make_session(graph, SessionSettings(), settings=ServingSettings(1))
    pairs: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []
    for case in subject.cases:
        for output, found in zip(session.get_outputs(), session.run(None, case.feeds), strict=True):
            rows = ~case.padded_rows
            pairs.append((found[rows], case.expected[output.name][rows]))
    found, expected = (np.concatenate(values) for values in zip(*pairs, strict=True))
    difference = found - expected
    return Cell(
        rms=float(np.sqrt(np.square(difference).mean() / np.square(expected).mean())),
        largest=float(np.abs(difference).max() / max(1.0, np.abs(expected).max())),
        cosine=float(row_cosines(found, expected).min()),
    )


def _bytes(graph: Path) -> int:
    return sum(Path(f"{graph}{suffix}").stat().st_size for suffix in ("", ".data") if Path(f"{graph}{suffix}").exists())


def _parity(cell: Cell) -> str:
    if cell.failure:
        return cell.failure
    if cell.rms is None:
        return "valid"
    return f"{cell.rms:.2g} / {cell.largest:.2g} / {cell.cosine:.5f}"


def _size(cell: Cell) -> str:
    return "" if cell.failure else f"{cell.size:.0%}".replace("%", " %")


def render(table: Mapping[str, Mapping[str, Cell]], facts: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    notes: list[str] = []
    machine = f"{facts['cpu']}, {facts['cores']} cores"
    known = ("onnxruntime", "torch", "transformers", "onnx")
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in known if name in facts["versions"])
    lines = [_TITLE.format(date=facts["date"][:10], machine=machine, versions=versions), ""]

    def parity(family: str, one: str) -> str:
        cell = table[family][one]
        if not cell.failure:
            return _parity(cell)
        notes.append(f"{one}, {family}: {cell.failure}")
        return f"**not made** ({len(notes)})"

    lines += [_PARITY, "", *_rows(table, parity)]
    if notes:
        lines += ["", "Why a cell is empty:", "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    lines += ["", _SIZE, "", *_rows(table, lambda family, one: _size(table[family][one]))]
    return "\n".join(lines) + "\n"


def _rows(table: Mapping[str, Mapping[str, Cell]], text: Callable[[str, str], str]) -> list[str]:
    families = list(table)
    head = [f"| pass | {' | '.join(families)} |", f"|---|{'---:|' * len(families)}"]
    return head + [f"| {one.name} | {' | '.join(text(family, one.name) for family in families)} |" for one in PASSES]


if __name__ == "__main__":
    sys.exit(main())
