"""Presses Hugging Face models into verified ONNX bundles and serves them without PyTorch.

    import onnxpress

    model = onnxpress.load("bundle")
    vectors = model.embed(["a sentence", "another one"])

Importing this is cheap: what a name needs is imported when the name is first used.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress._onnxruntime import check_onnxruntime

if TYPE_CHECKING:
    from onnxpress.exporter import ExportConfig, ExportResult, export
    from onnxpress.runtime.errors import OnnxpressError
    from onnxpress.runtime.model import load
    from onnxpress.runtime.runner import BatchingRunner

__version__ = "0.2.0"

__all__ = ["BatchingRunner", "ExportConfig", "ExportResult", "OnnxpressError", "__version__", "export", "load"]

# Official onnxruntime wheels send telemetry unless this is set before the module is imported, and whoever
# hosts a model did not ask for that. A value that is already set is the user's own decision and stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULE_OF = {
    "load": "onnxpress.runtime.model",
    "BatchingRunner": "onnxpress.runtime.runner",
    "OnnxpressError": "onnxpress.runtime.errors",
    "export": "onnxpress.exporter",
    "ExportConfig": "onnxpress.exporter",
    "ExportResult": "onnxpress.exporter",
}


def _runs_as_command() -> bool:
    """Whether this is ``onnxpress ...`` or ``python -m onnxpress ...``, not a program that embeds us."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # what Python puts there while it looks for the module
        return "onnxpress" in sys.orig_argv
    return Path(program).stem == "onnxpress"


try:
    check_onnxruntime()
except ImportError as error:
    # Here and not in the command's own code, because that code lies inside this package: this import would
    # already have failed, with a traceback where a sentence belongs.
    if not _runs_as_command():
        raise
    print(f"onnxpress: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def __getattr__(name: str) -> Any:
    module_name = _MODULE_OF.get(name)
    if module_name is None:
        raise AttributeError(f"module 'onnxpress' has no attribute {name!r}")
    try:
        value = getattr(import_module(module_name), name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != "onnxpress.exporter" or missing.partition(".")[0] == "onnxpress":
            raise
        raise ImportError(
            f"onnxpress.{name} needs {missing}, which is not installed: run pip install 'onnxpress[export]'"
        ) from error
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
