"""Manifests as JSON, and the sizes and hashes in them made right again after a file was changed: what somebody who
makes a hostile bundle would do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "onnxpress.json"


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle that is still good."""
    document: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return document


def write(folder: Path, document: Any) -> None:
    """Replace the manifest. NaN, Infinity and lone surrogates are written as Python's json writes them."""
    (folder / MANIFEST).write_text(json.dumps(document))


def add_file(document: dict[str, Any], relative: str) -> None:
    """List a further file, also as one of every variant."""
    document["files"].append({"path": relative, "size_bytes": 0, "sha256": ""})
    for variant in document["variants"]:
        variant["files"].append(relative)


def seal(folder: Path, document: dict[str, Any] | None = None) -> None:
    """Write the manifest with the sizes and hashes that the regular files have now."""
    document = read(folder) if document is None else document
    for record in document["files"]:
        path = folder / record["path"]
        if path.is_file():
            record["size_bytes"] = path.stat().st_size
            if record["size_bytes"] < 2**26:
                record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write(folder, document)
