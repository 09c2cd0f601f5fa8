"""How the variants of an encoder beside fp32 are made: half precision, and 8 and 4 bits.

Where there are several ways, all are made and put into an order; the gate takes the first that passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from onnxpress.exporter.calibration import encoder_feeds, uses_calibration
from onnxpress.exporter.quiet import quiet
from onnxpress.exporter.state import State
from onnxpress.quantize.activations import Feeds
from onnxpress.quantize.graphs import PassReport
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.hardware import HALF_TYPES
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.manifest import Tensor
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.verification import Case, Run, check_parity
from onnxpress.runtime.verifying import run_of

_TIMING_SECONDS = 2.0  # enough for a 10 % difference to show
_COMPARED = 16  # batches of calibration texts that graphs are compared on

Make = Callable[[State, Path], dict[str, Any]]
Quantize = Callable[[Path], PassReport]
Written = tuple[Path, list[PassReport]]


def maker(state: State, precision: str, cases: Sequence[Case]) -> tuple[dict[str, Any], Make]:
    """What a variant depends on beside the model, as JSON data, and what writes it into a folder.

    Args:
        state: after the step that fuses.
        precision: which variant.
        cases: the verification inputs that are real texts, to time and compare graphs on.
    """
    config = state.config
    if precision in HALF_TYPES:
        return {}, _half(HALF_TYPES[precision])
    if precision == "int4":
        weights = config.weight_only(4)
        return {"weight_only": dataclasses.asdict(weights)}, _weight_only
    depends_on: dict[str, Any] = {"embedding_bits": config.embedding_bits}
    if uses_calibration(state, precision):
        depends_on["calibration"] = encoder_feeds(state)[1]
    if precision == "int8":
        return depends_on, lambda state, folder: _dynamic(state, folder, cases)
    depends_on |= {"method": config.calibration_method, "migration": config.migration}
    return depends_on, lambda state, folder: _static(state, folder, cases)


def _half(dtype: Literal["float16", "bfloat16"]) -> Make:
    def make(state: State, folder: Path) -> dict[str, Any]:
        from onnxpress.quantize.fp16 import Fp16Config, convert_fp16

        assert state.fused is not None
        feeds = [case.feeds for case in state.cases]
        with quiet(state.verbose):
            report = convert_fp16(state.fused.path, folder / "model.onnx", feeds, Fp16Config(dtype=dtype))
        return {"graphs": [_entry("model.onnx", [report])], "candidates": []}

    return make


def _weight_only(state: State, folder: Path) -> dict[str, Any]:
    from onnxpress.quantize.weight_only import quantize_weights

    assert state.fused is not None
    with quiet(state.verbose):
        report = quantize_weights(state.fused.path, folder / "model.onnx", state.config.weight_only(4))
    return {"graphs": [_entry("model.onnx", [report])], "candidates": []}


def _dynamic(state: State, folder: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Every way of quantizing that suits this processor, the fastest first."""
    from onnxpress.quantize.int8_dynamic import candidates, quantize_int8_dynamic

    assert state.fused is not None
    source = state.fused.path
    feeds = [case.feeds for case in cases]
    if uses_calibration(state, "int8"):  # what was given shows more of the channels that stand out
        feeds += encoder_feeds(state)[0]
    kinds = candidates(describe_machine())
    with quiet(state.verbose):
        made = [
            _write(state, folder / str(index), partial(quantize_int8_dynamic, source, config=kind, feeds=feeds))
            for index, kind in enumerate(kinds)
        ]
        times = _times(state, made, cases)
    listed = [{"name": kind.label, "milliseconds": time} for kind, time in zip(kinds, times, strict=True)]
    return _ordered(folder, made, listed, times)


def _static(state: State, folder: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Ways to find the ranges of activations and to move their scales, the most accurate first: they are equally fast
    but for a few percent."""
    from onnxpress.quantize.int8_static import Int8StaticConfig, candidates, quantize_int8_static
    from onnxpress.quantize.migration import MigrationConfig

    assert state.fused is not None
    source, config = state.fused.path, state.config
    feeds = encoder_feeds(state)[0]
    # With the random tokens that the gate looks at, too: what no text holds would else be cut off. On texts that costs
    # nothing that can be measured.
    wide = [*feeds, *(case.feeds for case in state.cases)]
    options: dict[str, Any] = {}
    if config.calibration_method is not None:
        options["methods"] = [config.calibration_method]
    if config.migration is not None:
        options["migrations"] = [None if config.migration == "off" else MigrationConfig(config.migration)]
    kinds: tuple[Int8StaticConfig, ...] = candidates(describe_machine(), **options)
    made: list[Written] = []
    with quiet(state.verbose):
        for index, kind in enumerate(kinds):
            state.progress("convert", f"int8-static, {kind.label}", None)
            place = folder / str(index)
            made.append(_write(state, place, partial(quantize_int8_static, source, config=kind, feeds=wide)))
        times = _times(state, made, cases)
        errors = _errors(state, [path for path, _ in made], [*cases, *_cases_of(state, feeds)])
    listed = [
        {"name": kind.label, "milliseconds": time, "error": error}
        for kind, time, error in zip(kinds, times, errors, strict=True)
    ]
    return _ordered(folder, made, listed, errors)


def _write(state: State, folder: Path, quantize: Quantize) -> Written:
    """Write a quantized graph, with its embedding tables in few bits where that is asked for, and say where it is."""
    folder.mkdir()
    path = folder / "model.onnx"
    report = quantize(path)
    if state.config.embedding_bits is None:
        return path, [report]
    from onnxpress.quantize.embedding_tables import EmbeddingConfig, quantize_embedding_tables

    smaller = folder / "tables" / "model.onnx"
    smaller.parent.mkdir()
    config = EmbeddingConfig(bits=state.config.embedding_bits)
    try:
        also = quantize_embedding_tables(path, smaller, config)
    except UnsupportedModelError as error:  # the products are none the less as they were asked for
        nothing = PassReport("quantize embedding tables", f"none: {error}", report.nodes_after, report.nodes_after)
        return path, [report, nothing]
    for suffix in ("", ".data"):
        path.with_name(f"{path.name}{suffix}").unlink()
    return smaller, [report, also]


def _times(state: State, made: Sequence[Written], cases: Sequence[Case]) -> list[float]:
    from onnxpress.exporter.fusion import time_forms

    assert state.fused is not None
    state.progress("convert", f"timing {len(made)} kinds of int8", None)
    return time_forms([(path, state.fused.session) for path, _ in made], cases, _TIMING_SECONDS)


def _errors(state: State, paths: Sequence[Path], cases: Sequence[Case]) -> list[float]:
    """Root mean square errors of the outputs on all cases together, in the units of the gate."""
    errors = []
    for path in paths:
        run, compared = _open(state, path)
        results = check_parity(run, cases, compared, "rms", 1.0).cases
        errors.append((sum(result.rms_error**2 for result in results) / len(results)) ** 0.5)
    return errors


def _cases_of(state: State, feeds: Sequence[Feeds]) -> list[Case]:
    """Calibration inputs, evenly from all of them, with what the float32 graph gives for them."""
    assert state.fused is not None
    run, _ = _open(state, state.fused.path)
    chosen = [dict(feed) for feed in feeds[:: -(-len(feeds) // _COMPARED)]]
    return [Case(f"calibration {number}", feed, dict(run(feed)), True) for number, feed in enumerate(chosen)]


def _open(state: State, path: Path) -> tuple[Run, Sequence[Tensor]]:
    assert state.fused is not None
    assert state.facts is not None
    session = make_session(path, state.fused.session, settings=ServingSettings(1))
    return run_of(session, state.facts.settings, state.facts.outputs)


def _ordered(
    folder: Path, made: Sequence[Written], candidates: Sequence[dict[str, Any]], figures: Sequence[float]
) -> dict[str, Any]:
    """Graphs and what is known of them, the smallest figure first."""
    order = sorted(range(len(made)), key=lambda index: figures[index])
    return {
        "graphs": [_entry(made[index][0].relative_to(folder).as_posix(), made[index][1]) for index in order],
        "candidates": [candidates[index] for index in order],
    }


def _entry(path: str, reports: Sequence[PassReport]) -> dict[str, Any]:
    return {"path": path, "reports": [dataclasses.asdict(report) for report in reports]}
