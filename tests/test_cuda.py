"""The same bundle on the CUDA provider, on machines that have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxpress
from onnxpress.exporter import ExportConfig
from onnxpress.runtime.generation.storage import DeviceStorage
from onnxpress.runtime.providers import SHORT_NAMES, CudaOptions, unusable_because
from tests.models import save_decoder

REASON = unusable_because(SHORT_NAMES["cuda"])

pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no CUDA provider: {REASON}")


def test_cuda_agrees_with_cpu(tiny_bundle: Path) -> None:
    texts = ["a short text", "a text that is quite a bit longer than the other one", "three"]
    expected = onnxpress.load(tiny_bundle, variant="fp32", providers="cpu").embed(texts)
    found = onnxpress.load(tiny_bundle, variant="fp32", providers="cuda").embed(texts)
    # TF32 products keep about three decimal digits.
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("graphs", [False, True])
def test_text_on_cuda_is_that_on_the_cpu_but_for_near_ties(tmp_path: Path, graphs: bool) -> None:
    source = save_decoder(tmp_path / "tiny")
    bundle = onnxpress.export(source, tmp_path / "b", ExportConfig(measure="none", variants=("fp16",))).folder
    prompts = ["the order was not sent", "where", "my cat is not the dog , the order", "is the parcel sent ?"]
    answers = []
    for providers in ("cpu", [CudaOptions(cuda_graphs=graphs)]):
        model = onnxpress.load(bundle, variant="fp16", providers=providers, task="text-generation")
        # Longer than the steps before a graph is captured.
        answers.append(model.generate(prompts, max_new_tokens=40, temperature=0.0, ignore_eos=True))
    assert isinstance(model.engine.decoder.cache.storage, DeviceStorage)
    assert (model.engine.decoder.graphs is not None) == graphs
    pairs = [
        pair for one, other in zip(*answers, strict=True) for pair in zip(one.token_ids, other.token_ids, strict=True)
    ]
    assert sum(one == other for one, other in pairs) >= 0.9 * len(pairs)
    model.close()
