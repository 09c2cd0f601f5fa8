"""ONNX graph -> smaller ONNX graph: half precision, 8-bit and 4-bit variants.

Works on graphs only: knows neither where they came from nor how they are served.
"""

from __future__ import annotations

if __name__ != "onnxpress.quantize":
    # Under a second name the same file would be a second module, whose classes are not those of the first.
    raise ImportError(f"this is the package onnxpress.quantize: import it by that name, not as {__name__!r}")
