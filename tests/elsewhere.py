"""Bundles whose figures are of other machines: a manifest is not hashed, so it can be made to say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxpress.runtime.machine import Machine

AVX2 = Machine("Old Xeon", "x86_64", 2, ("avx", "avx2", "fma"), 2**33, "Linux 6", "3.11", None)
VNNI = Machine("New Xeon", "x86_64", 8, ("avx", "avx2", "fma", "avx512_vnni"), 2**33, "Linux 6", "3.11", None)


def change_manifest(bundle: Path, latency_ms: float | None = 1.5, **keys: Any) -> Path:
    """Set keys of a bundle's manifest, those of `machine` and `versions` one by one, and a figure of every variant."""
    path = bundle / "onnxpress.json"
    manifest = json.loads(path.read_text())
    manifest["created"] = str(bundle)  # no two tests share what is kept of a bundle
    for name, value in keys.items():
        manifest[name] = manifest[name] | value if isinstance(value, dict) else value
    for variant in manifest["variants"]:
        variant["latency_ms"] = latency_ms
    path.write_text(json.dumps(manifest))
    return bundle
