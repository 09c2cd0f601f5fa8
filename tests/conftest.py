"""What tests share: a tiny random sentence embedder made on the fly, and the bundle pressed from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.models import make_embedder

if TYPE_CHECKING:
    from onnxpress.runtime.server.registry import Models
    from tests.graphs import Traced

# Machines that run tests are busy: how long an example takes says nothing.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the whole run, apart from the user's own; processes that tests start inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ONNXPRESS_CACHE"] = str(folder)
    yield folder
    del os.environ["ONNXPRESS_CACHE"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with a two-layer BERT."""
    return make_embedder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Traced:
    """`tiny_model` in PyTorch and as a traced graph. Tests that edit the graph take a copy, `traced.graph()`."""
    from tests.graphs import trace_folder

    return trace_folder(tiny_model, tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, user_cache: Path) -> Path:
    """The bundle of `tiny_model` with all variants. Tests that change it take `bundle_copy`."""
    import onnxpress

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    return onnxpress.export(tiny_model, folder, onnxpress.ExportConfig(measure="none")).folder


@pytest.fixture(scope="session")
def guard_bundle(tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> Path:
    """A text-classification bundle that knows the harmful texts of tests/guard_texts.py in English and Chinese. The
    tests are about guards, not about what so small a model learns, which also hangs on how a processor rounds: of
    several trainings it is the first that tells the texts apart."""
    from examples.training import press, train_classifier
    from tests.guard_texts import tells_apart, training_texts

    folder = tmp_path_factory.mktemp("trained")
    for seed in range(6):
        bundle = press(train_classifier(folder / f"guard{seed}", training_texts(), seed=seed, steps=500, layers=2))
        if tells_apart(bundle):
            return bundle
    raise AssertionError("no training told the texts of tests/guard_texts.py apart")


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_bundle` to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def task_bundles(tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> dict[str, Path]:
    """A tiny bundle for each task, text generation too, by the name of its folder (tests/served_models.py)."""
    from tests.served_models import make_bundles

    return make_bundles(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def served(task_bundles: dict[str, Path]) -> Iterator[Models]:
    """Those bundles as a server has them, with its usual limits. For tests that change nothing in them."""
    from onnxpress.runtime.server.registry import Models
    from onnxpress.runtime.server.settings import Limits, ServedBundle

    models = Models.load([ServedBundle(str(path), threads=1) for path in task_bundles.values()], Limits())
    yield models
    models.close(timeout=30)
