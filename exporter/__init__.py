"""Hugging Face model -> verified ONNX bundle: load, trace, fuse, verify, report, seal.

Needs the ``export`` extra (torch, transformers, ...). Nothing in here is needed to serve a bundle.
"""

from __future__ import annotations

if __name__ != "onnxpress.exporter":
    # Under a second name the same file would be a second module, whose classes are not those of the first.
    raise ImportError(f"this is the package onnxpress.exporter: import it by that name, not as {__name__!r}")

from onnxpress.exporter.config import ExportConfig, Thresholds
from onnxpress.exporter.pipeline import ExportResult, export

__all__ = ["ExportConfig", "ExportResult", "Thresholds", "export"]
