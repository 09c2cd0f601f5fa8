"""Hugging Face model -> verified ONNX bundle: load, trace, fuse, verify, report, seal.

Needs the ``export`` extra (torch, transformers, ...), which is imported when a name below is first used; ``page`` draws
without it. Nothing in here is needed to serve a bundle.
"""

from __future__ import annotations

if __name__ != "onnxpress.exporter":
    # Under a second name the same file would be a second module, whose classes are not those of the first.
    raise ImportError(f"this is the package onnxpress.exporter: import it by that name, not as {__name__!r}")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.exporter.config import ExportConfig, Thresholds
    from onnxpress.exporter.pipeline import ExportResult, export

__all__ = ["ExportConfig", "ExportResult", "Thresholds", "export"]

_MODULE_OF = {
    "ExportConfig": "onnxpress.exporter.config",
    "Thresholds": "onnxpress.exporter.config",
    "ExportResult": "onnxpress.exporter.pipeline",
    "export": "onnxpress.exporter.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
