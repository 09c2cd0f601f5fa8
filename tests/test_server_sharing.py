"""What workers have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from onnxpress.runtime.server import sharing
from onnxpress.runtime.server.settings import ServedBundle, ServerSettings
from onnxpress.runtime.settings import PRESETS


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "usable_cores", lambda: 6)


def divided(bundle: ServedBundle, workers: int) -> ServedBundle:
    (found,) = sharing.for_each_worker(ServerSettings((bundle,), workers=workers)).bundles
    return found


@pytest.mark.parametrize(("workers", "threads"), [(1, None), (2, 3), (4, 1), (8, 1)])
def test_cores_are_divided(tiny_bundle: Path, workers: int, threads: int | None) -> None:
    bundle = ServedBundle(str(tiny_bundle))
    assert divided(bundle, workers).threads == threads
    assert divided(dataclasses.replace(bundle, threads=5), workers).threads == 5


def test_weights_of_large_variants_are_shared(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = ServedBundle(str(tiny_bundle))
    assert divided(bundle, 2).share_weights is False
    assert divided(dataclasses.replace(bundle, share_weights=True), 2).share_weights is True
    monkeypatch.setattr(sharing, "SHARED_BYTES", 1000)
    assert divided(bundle, 2).share_weights is True
    assert divided(dataclasses.replace(bundle, share_weights=False), 2).share_weights is False
    assert divided(bundle, 1).share_weights is None  # it is alone


def test_sharing_changes_nothing_else(tiny_bundle: Path) -> None:
    bundle = ServedBundle(str(tiny_bundle), settings="small", share_weights=True)
    assert sharing.serving_settings(bundle) == dataclasses.replace(PRESETS["small"], share_weights=True)
    assert sharing.serving_settings(dataclasses.replace(bundle, settings=None)) == dataclasses.replace(
        PRESETS["server"], share_weights=True
    )
    assert sharing.serving_settings(dataclasses.replace(bundle, share_weights=False)) == PRESETS["small"]
    assert sharing.serving_settings(ServedBundle(str(tiny_bundle))) == PRESETS["server"]
