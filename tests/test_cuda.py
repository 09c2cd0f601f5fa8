"""The same bundle on the CUDA provider, on machines that have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxpress
from onnxpress.runtime.providers import SHORT_NAMES, unusable_because

REASON = unusable_because(SHORT_NAMES["cuda"])

pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no CUDA provider: {REASON}")


def test_cuda_agrees_with_cpu(tiny_bundle: Path) -> None:
    texts = ["a short text", "a text that is quite a bit longer than the other one", "three"]
    expected = onnxpress.load(tiny_bundle, variant="fp32", providers="cpu").embed(texts)
    found = onnxpress.load(tiny_bundle, variant="fp32", providers="cuda").embed(texts)
    # TF32 products keep about three decimal digits.
    np.testing.assert_allclose(found, expected, atol=5e-3)
