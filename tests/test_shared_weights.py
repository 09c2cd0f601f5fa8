"""Weights that processes share: one copy a bundle, variant, machine and onnxruntime, the same results, and what happens
to a copy that is damaged, outdated or cannot be made."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import onnxpress
from onnxpress.runtime import shared_weights
from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.machine import describe_machine
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.shared_weights import discard_changed, model_to_open
from tests.decoder_graph import TinyDecoder
from tests.elsewhere import AVX2
from tests.tiny_generator import TINY, make_bundle, opening

SHARED = ServingSettings(threads=1, share_weights=True)
TEXTS = ["where is my order", "the parcel was not sent", "a cat"]

# Opens the bundle it is given, as a worker of a service does, and says what it answers and what it has mapped.
WORKER = """
import json, logging, resource, sys
logging.basicConfig(level=logging.INFO)
if int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
import onnxpress
from onnxpress.runtime.settings import ServingSettings
model = onnxpress.load(sys.argv[1], "fp32", settings=ServingSettings(threads=2, share_weights=True))
vectors = model.embed(sys.argv[3:])
mapped = [line.split()[-1] for line in open("/proc/self/maps") if line.endswith("weights.bin\\n")]
print(json.dumps({"vectors": vectors.tolist(), "mapped": sorted(set(mapped))}))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXPRESS_CACHE", str(folder))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny decoder; copies are told apart by what a manifest's hash would be."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    return dataclasses.replace(make_bundle(folder), manifest_sha256="a" * 64)


def shared(bundle: Bundle) -> Path:
    return model_to_open(bundle, bundle.manifest.variant(None), SHARED, on_cpu=True)


def copies(cache: Path) -> set[Path]:
    return {path.parent for path in cache.glob("weights/*/record.json")}


def embed(bundle: Path, variant: str, **settings: Any) -> npt.NDArray[np.float32]:
    model = onnxpress.load(bundle, variant, settings=ServingSettings(**settings), task="feature-extraction")
    return model.embed(TEXTS)


def start(bundle: Path, most_bytes: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(bundle), str(most_bytes), *TEXTS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def answer(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """What a worker printed, and its log."""
    output, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found, log


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_an_encoder_computes_the_same(tiny_bundle: Path, cache: Path, variant: str) -> None:
    alone = embed(tiny_bundle, variant, threads=2)
    assert not cache.exists()
    assert np.array_equal(embed(tiny_bundle, variant, threads=2, share_weights=True), alone)
    assert len(copies(cache)) == 1
    assert np.array_equal(embed(tiny_bundle, variant, threads=1, share_weights=True), alone)
    assert len(copies(cache)) == 1


def test_a_decoder_computes_the_same(bundle: Bundle, cache: Path) -> None:
    options = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}
    with opening(bundle) as open_with:
        alone = open_with().generate("hello there", **options)
    with opening(bundle, SHARED) as open_with:
        assert open_with().generate("hello there", **options).token_ids == alone.token_ids
    (copy,) = copies(cache)
    # The rearranged weights are beside the plain ones.
    plain = sum(array.nbytes for array in TINY.weights.values() if array.nbytes >= 1024)
    assert (copy / "weights.bin").stat().st_size > 1.5 * plain


def test_processes_that_start_together_make_one_copy_and_map_it(tiny_bundle: Path, cache: Path) -> None:
    expected = embed(tiny_bundle, "fp32", threads=2)
    answers = [answer(process) for process in [start(tiny_bundle) for _ in range(3)]]
    (copy,) = copies(cache)
    assert sum("from where processes share" in log for _, log in answers) == 1
    for found, _ in answers:
        assert found["mapped"] == [str(copy / "weights.bin")]
        assert np.array_equal(np.array(found["vectors"], np.float32), expected)
    assert {path.name for path in (cache / "weights").iterdir()} == {".lock", copy.name}


def test_a_disk_that_is_full_leaves_the_weights_where_they_were(tiny_bundle: Path, cache: Path) -> None:
    expected = embed(tiny_bundle, "fp32", threads=2)
    found, log = answer(start(tiny_bundle, most_bytes=16384))
    assert found["mapped"] == []
    assert np.array_equal(np.array(found["vectors"], np.float32), expected)
    assert "WARNING:onnxpress:variant fp32" in log
    assert "no copy could be written" in log
    assert [path.name for path in (cache / "weights").iterdir()] == [".lock"]


def test_a_copy_that_lacks_its_end_is_not_kept(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def truncating(*args: Any, write_packed: Path, **options: Any) -> None:
        make(*args, write_packed=write_packed, **options)
        weights = write_packed.with_name("weights.bin")
        os.truncate(weights, weights.stat().st_size - 1)

    make = shared_weights.make_session
    monkeypatch.setattr(shared_weights, "make_session", truncating)
    assert shared(bundle) == bundle.folder / "model.onnx"
    assert "is the disk full?" in caplog.text
    assert not copies(cache)


def test_a_cache_that_cannot_be_written_is_no_error(
    bundle: Bundle, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where a folder should be")
    assert shared(bundle) == bundle.folder / "model.onnx"
    assert "no other shares them: Not a directory" in caplog.text


def test_a_copy_that_is_there_is_used_when_the_cache_cannot_be_written(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    found = shared(bundle)
    monkeypatch.setattr(shared_weights.os, "utime", refuse)
    monkeypatch.setattr(shared_weights.os, "open", refuse)
    assert shared(bundle) == found


def damage_weights(copy: Path) -> None:
    os.truncate(copy / "weights.bin", 100)


def damage_graph(copy: Path) -> None:
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes().replace(b"MatMul", b"MaxMul"))


def damage_record(copy: Path) -> None:
    (copy / "record.json").write_text("[1]")


def nest_record(copy: Path) -> None:
    (copy / "record.json").write_text("[" * 100_000)


def outdate(copy: Path) -> None:
    record = json.loads((copy / "record.json").read_text())
    record["of"]["onnxruntime"] = "1.0.0"
    (copy / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [damage_weights, damage_graph, damage_record, nest_record, outdate])
def test_a_copy_that_is_not_what_it_should_be_is_made_again(bundle: Bundle, damage: Callable[[Path], None]) -> None:
    folder = shared(bundle).parent
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} != whole
    assert shared(bundle).parent == folder
    assert (folder / "model.onnx").read_bytes() == whole["model.onnx"]
    assert (folder / "weights.bin").read_bytes() == whole["weights.bin"]


def test_asking_for_verification_hashes_the_copy(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    variant = bundle.manifest.variant(None)
    discard_changed(bundle, variant)  # there is none
    folder = shared(bundle).parent
    weights = folder / "weights.bin"
    whole = weights.read_bytes()
    discard_changed(bundle, variant)
    assert weights.exists()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert shared(bundle).parent == folder
    discard_changed(bundle, variant)
    assert not folder.exists()
    assert "were changed, they are made again" in caplog.text
    shared(bundle)
    assert weights.read_bytes() == whole


def test_a_changed_copy_that_cannot_be_removed_is_not_used(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (shared(bundle).parent / "weights.bin").write_bytes(b"other")
    monkeypatch.setattr(shared_weights.os, "open", refuse)
    with pytest.raises(InvalidBundleError, match=r"cannot be removed \(Permission denied\); remove that folder"):
        discard_changed(bundle, bundle.manifest.variant(None))


def test_load_with_verification_replaces_a_changed_copy(tiny_bundle: Path, cache: Path) -> None:
    expected = embed(tiny_bundle, "fp32", threads=1, share_weights=True)
    (copy,) = copies(cache)
    weights = copy / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    model = onnxpress.load(tiny_bundle, "fp32", verify=True, settings=SHARED, task="feature-extraction")
    assert np.array_equal(model.embed(TEXTS), expected)


def test_a_copy_that_was_removed_is_made_again_for_the_session_of_many_texts(tiny_bundle: Path, cache: Path) -> None:
    settings = ServingSettings(threads=2, share_weights=True)
    model = onnxpress.load(tiny_bundle, "fp32", settings=settings, task="feature-extraction")
    expected = model.embed(TEXTS[:1])
    shutil.rmtree(cache)
    np.testing.assert_allclose(model.embed(TEXTS * 200)[:1], expected, atol=1e-6)
    assert len(copies(cache)) == 1


def test_another_processor_onnxruntime_variant_or_bundle_has_a_copy_of_its_own(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [shared(bundle), shared(dataclasses.replace(bundle, manifest_sha256="b" * 64))]
    here = describe_machine()
    monkeypatch.setattr(shared_weights, "describe_machine", lambda: dataclasses.replace(here, cores=77))
    assert shared(bundle) == found[0]  # a worker that is pinned to some cores shares all the same
    monkeypatch.setattr(shared_weights, "describe_machine", lambda: AVX2)
    found.append(shared(bundle))
    monkeypatch.setattr(shared_weights, "onnxruntime_version", lambda: "9.9.9")
    found.append(shared(bundle))
    assert len(set(found)) == 4
    assert copies(cache) == {path.parent for path in found}


def test_the_copies_used_longest_ago_go_first(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = [dataclasses.replace(bundle, manifest_sha256=digit * 64) for digit in "abcd"]
    first, second, third = (shared(each).parent for each in bundles[:3])
    for age, folder in enumerate([second, third, first]):
        os.utime(folder / "record.json", (1000 + age, 1000 + age))
    size = sum(path.stat().st_size for path in first.iterdir())
    needed = 2.5 * (bundle.folder / "model.onnx").stat().st_size
    # Half of what is free and held is room for two copies and the one to come.
    free = int(2 * (2 * size + needed + 10) - 3 * size)
    monkeypatch.setattr(shared_weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    fourth = shared(bundles[3]).parent
    assert copies(cache) == {first, third, fourth}


def test_a_copy_that_would_take_most_of_the_disk_is_not_made(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = shared(dataclasses.replace(bundle, manifest_sha256="b" * 64)).parent
    monkeypatch.setattr(shared_weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert shared(bundle) == bundle.folder / "model.onnx"
    assert "set ONNXPRESS_CACHE to a larger one" in caplog.text
    assert copies(cache) == {other}


def test_what_killed_processes_left_is_removed(bundle: Bundle, cache: Path) -> None:
    for name in (".new-killed", "copy-without-a-record"):
        left = cache / "weights" / name
        left.mkdir(parents=True)
        (left / "weights.bin").write_bytes(b"half")
    folder = shared(bundle).parent
    assert {path.name for path in (cache / "weights").iterdir()} == {".lock", folder.name}


def test_weights_that_need_no_copy_have_none(bundle: Bundle, cache: Path) -> None:
    variant = bundle.manifest.variant(None)
    for settings, on_cpu in (
        (ServingSettings(), True),
        (SHARED, False),
        (dataclasses.replace(SHARED, prepacking=False), True),
    ):
        assert model_to_open(bundle, variant, settings, on_cpu=on_cpu) == bundle.folder / "model.onnx"
    assert not cache.exists()


def test_a_broken_graph_is_named_as_the_bundle_s(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    path = bundle.folder / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MaxMul"))
    with opening(bundle, SHARED) as open_with, pytest.raises(InvalidBundleError, match="onnxruntime cannot load"):
        open_with()
    assert "no copy could be written" in caplog.text


def test_weights_of_a_larger_decoder_are_not_in_private_memory(tmp_path: Path, cache: Path) -> None:
    """Four layers of 256: some 12 MB, which every session would otherwise have rearranged in memory of its own."""
    folder = tmp_path / "larger"
    folder.mkdir()
    decoder = TinyDecoder(layers=4, hidden=512, heads=8, kv_heads=2, head_dim=64, intermediate=1024, vocabulary=261)
    bundle = dataclasses.replace(make_bundle(folder, decoder), manifest_sha256="c" * 64)
    script = """
import sys
from pathlib import Path
from onnxpress.runtime.manifest import SessionSettings
from onnxpress.runtime.session import make_session
from onnxpress.runtime.settings import ServingSettings
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
make_session(sys.argv[1], SessionSettings(), settings=ServingSettings(threads=1))  # libraries and heap
before = private()
kept = [make_session(sys.argv[2], SessionSettings(), settings=ServingSettings(threads=1)) for _ in range(3)]
print(private() - before)
"""

    def private_kb(path: Path) -> int:
        command = [sys.executable, "-c", script, str(bundle.folder / "model.onnx"), str(path)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    weights_kb = sum(array.nbytes for array in decoder.weights.values()) // 1024
    assert private_kb(bundle.folder / "model.onnx") > 2 * weights_kb
    assert private_kb(shared(bundle)) < 0.5 * weights_kb
