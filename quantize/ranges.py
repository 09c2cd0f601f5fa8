"""Which values of an activation 8 bits stand for: the range that static quantization gives each.

- minmax: all that were seen.
- percentile: all but the outermost share of them on each side; of symmetric ones, of their magnitudes.
- entropy: the symmetric threshold whose 128 levels lose least information about the histogram of the values
  (Kullback-Leibler divergence), as TensorRT does it (Migacz, GTC 2017, "8-bit Inference with TensorRT").

The last two are computed by onnxruntime's HistogramCollector, which is fed some tokens at a time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import HistogramCollector

from onnxpress.quantize.activations import Feeds, observe

Method = Literal["minmax", "percentile", "entropy"]
Range = tuple[np.float32, np.float32]

# onnxruntime 1.32 takes 128 bins and 128 levels for entropy by default, which leaves one threshold to choose: the peak.
_BINS, _LEVELS = 2048, 128


def find_ranges(
    model: onnx.ModelProto,
    activations: Sequence[str],
    feeds: Sequence[Feeds],
    method: Method = "minmax",
    percentile: float = 99.99,
    symmetric: bool = False,
) -> dict[str, Range]:
    """The lowest and the highest value to keep of each activation; 0 is always between them.

    Args:
        model: its weights in memory.
        activations: names of values.
        feeds: inputs to run it on; real texts.
        method: see above.
        percentile: for that method, the share of values to keep, in percent.
        symmetric: as far below 0 as above.

    Raises:
        InvalidInputError: no real token is in the inputs.
        UnsupportedModelError: an activation is not a finite number.
    """
    ranges = _extremes(model, activations, feeds)
    if method != "minmax":
        ranges = _from_histograms(model, ranges, feeds, method, percentile, symmetric)
    if symmetric:
        return {name: (-max(-low, high), max(-low, high)) for name, (low, high) in ranges.items()}
    return ranges


def _extremes(model: onnx.ModelProto, activations: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, Range]:
    ranges = dict.fromkeys(activations, (np.float32(0), np.float32(0)))
    for rows in observe(model, activations, feeds):
        for name, values in rows.items():
            low, high = ranges[name]
            ranges[name] = min(low, values.min(initial=0)), max(high, values.max(initial=0))
    return ranges


def _from_histograms(
    model: onnx.ModelProto,
    extremes: dict[str, Range],
    feeds: Sequence[Feeds],
    method: Literal["percentile", "entropy"],
    percentile: float,
    symmetric: bool,
) -> dict[str, Range]:
    collector = HistogramCollector(method, symmetric, _BINS, _LEVELS, percentile, scenario="same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        # The range first: onnxruntime 1.32 keeps the width of the bins of what it saw first and adds as many as larger
        # values need, without a limit, so that an outlier in a later text would fill the memory.
        collector.collect({name: np.array([low, 0, high], np.float32) for name, (low, high) in extremes.items()})
        for rows in observe(model, list(extremes), feeds):
            collector.collect(rows)
        found = collector.compute_collection_result()
    return {
        name: (np.float32(max(low, min(found[name][0], 0))), np.float32(min(high, max(found[name][1], 0))))
        for name, (low, high) in extremes.items()
    }
