"""The good bundles that are spoiled: tiny random models, one for embeddings and one that writes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from bench.fuzzing import sealing
from onnxpress.runtime.manifest import FileRecord, render_manifest
from onnxpress.runtime.paths import MANIFEST_NAME


def make_encoder(folder: Path, scratch: Path) -> Path:
    """Export a two-layer BERT, in float32 and 8 bits."""
    import onnxpress
    from tests.models import make_embedder

    model = make_embedder(scratch / "model", prompts={"query": "find: "})
    config = onnxpress.ExportConfig(variants=("fp32", "int8"), measure="none")
    return onnxpress.export(model, folder, config).folder


def make_decoder(folder: Path) -> Path:
    """A graph of two layers and a tokenizer of bytes, sealed."""
    from tests.tiny_generator import make_bundle

    folder.mkdir()
    manifest = make_bundle(folder).manifest
    files = tuple(
        FileRecord(path.relative_to(folder).as_posix(), 0, "") for path in sorted(folder.rglob("*")) if path.is_file()
    )
    (folder / MANIFEST_NAME).write_text(render_manifest(dataclasses.replace(manifest, files=files)))
    sealing.seal(folder)
    return folder


def thin(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with its float32 variant alone, which is quickly copied again."""
    shutil.copytree(bundle, folder)
    document = sealing.read(folder)
    (kept,) = (entry for entry in document["variants"] if entry["name"] == "fp32")
    dropped = {path for entry in document["variants"] for path in entry["files"]} - set(kept["files"])
    for path in dropped:
        (folder / path).unlink()
    for path in folder.iterdir():
        if path.is_dir() and not any(path.rglob("*.*")):
            shutil.rmtree(path)
    document |= {
        "variants": [kept],
        "default_variant": "fp32",
        "files": [record for record in document["files"] if record["path"] not in dropped],
    }
    sealing.write(folder, document)
    return folder
