"""Puts files into the staging folder and writes its manifest: a draft the runtime can open, then the last."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from onnxpress.exporter.state import TOKENIZER_FILE, Graph, State, VariantState
from onnxpress.runtime.machine import describe_machine, versions
from onnxpress.runtime.manifest import (
    SCHEMA_VERSION,
    FileRecord,
    Manifest,
    Source,
    Variant,
    render_manifest,
)
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.paths import MANIFEST_NAME, sha256_of, write_atomically
from onnxpress.runtime.verification import CASES_FILE

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


def install_graph(state: State, variant: str, graph: Graph) -> None:
    """Copy a graph and its external data into the variant's folder, replacing what is there."""
    folder = state.folder / variant
    remove_variant(state, variant)
    folder.mkdir()
    for name in ("model.onnx", *sorted(external_data_locations(graph.path))):
        shutil.copyfile(graph.path.with_name(name), folder / name)


def remove_variant(state: State, variant: str) -> None:
    """Remove the variant's folder, if there is one."""
    shutil.rmtree(state.folder / variant, ignore_errors=True)


def write_manifest(state: State, final: bool = False) -> Manifest:
    """Write the manifest of what is in the staging folder.

    Args:
        state: variants whose status is `failed` are left out.
        final: hash the files; a draft carries empty hashes, which only `verify` would look at.
    """
    facts = state.facts
    assert facts is not None
    kept = [variant for variant in state.variants if variant.status != "failed"]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        created=state.created,
        source=Source(
            name=state.source.name,
            location=state.source.location,
            revision=state.source.revision,
            weights_sha256=state.source.files_sha256,
        ),
        task=state.task,
        architecture=facts.architecture,
        tokenizer=dataclasses.replace(facts.settings.tokenizer, file=TOKENIZER_FILE),
        embedding=facts.settings.embedding,
        labels=facts.settings.labels,
        mask=facts.settings.mask,
        generation=facts.settings.generation,
        inputs=facts.inputs,
        outputs=facts.outputs,
        files=tuple(_record(state.folder, path, final) for path in _files(state.folder)),
        variants=tuple(_variant(state, variant) for variant in kept),
        default_variant=state.default or kept[0].name,
        default_reason=state.default_reason,
        machine=dataclasses.asdict(describe_machine()),
        versions=versions(),
    )
    write_atomically(state.folder / MANIFEST_NAME, render_manifest(manifest).encode())
    return manifest


def write_report_files(state: State, report: dict[str, Any], page: str) -> None:
    """Write report.json and report.html into the staging folder."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(state.folder / REPORT_JSON, (text + "\n").encode())
    write_atomically(state.folder / REPORT_HTML, page.encode())


def variant_size_bytes(state: State, variant: str) -> int:
    """Bytes of the variant's files."""
    return sum(path.stat().st_size for path in (state.folder / variant).iterdir())


def _files(folder: Path) -> list[str]:
    named = [TOKENIZER_FILE, CASES_FILE, REPORT_JSON, REPORT_HTML]
    found = [name for name in named if (folder / name).is_file()]
    inner = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*")) if path.is_file()]
    return [*found, *inner]


def _record(folder: Path, relative: str, final: bool) -> FileRecord:
    path = folder / relative
    return FileRecord(relative, path.stat().st_size, sha256_of(path) if final else "")


def _variant(state: State, variant: VariantState) -> Variant:
    files = sorted(path.relative_to(state.folder).as_posix() for path in (state.folder / variant.name).iterdir())
    measured = state.measurements.get(variant.name)
    short = measured.latency[0] if measured and measured.latency else None
    # Decoders have another unit, which report.json tells.
    rates = [row["texts_per_second"] for row in measured.throughput if "texts_per_second" in row] if measured else []
    return Variant(
        name=variant.name,
        precision=variant.precision,
        target=variant.target,  # type: ignore[arg-type]
        status=variant.status,  # type: ignore[arg-type]
        model=f"{variant.name}/model.onnx",
        files=tuple(files),
        size_bytes=variant_size_bytes(state, variant.name),
        session=variant.graph.session,
        accuracy=variant.accuracy,
        agreement=variant.parity.agreement if variant.parity else None,
        latency_ms=short["p50_ms"] if short else None,
        texts_per_second=max(rates, default=None),
        peak_memory_bytes=measured.peak_memory_bytes if measured else None,
        parity_kind=variant.parity.kind if variant.parity else "cosine",
        parity_threshold=variant.parity.threshold if variant.parity else 0.0,
    )
