"""Bundle -> answers: open a bundle, pick a provider, tokenize, batch, run, measure.

Imports numpy, onnxruntime and tokenizers, and no torch, transformers, onnx or onnx_ir, directly or through
anything else: this is the part that is deployed.
"""

from __future__ import annotations

if __name__ != "onnxpress.runtime":
    # Under a second name the same file would be a second module, whose classes are not those of the first.
    raise ImportError(f"this is the package onnxpress.runtime: import it by that name, not as {__name__!r}")
