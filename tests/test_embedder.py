"""The runtime: order, batching, threads, forks, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxpress
from onnxpress.runtime.errors import ForkError, InvalidBundleError, InvalidInputError, ProviderError
from onnxpress.runtime.settings import ServingSettings
from onnxpress.runtime.tasks import Embedder
from onnxpress.runtime.tokenizer import MAX_TEXT_CHARACTERS
from tests.models import make_embedder

WORDS = ("the", "order", "was", "not", "sent", "cat", "dog", "where", "parcel", "xyz")


def texts_of(count: int) -> list[str]:
    rng = random.Random(count)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Embedder:
    return onnxpress.load(tiny_bundle, variant="fp32", threads=2)


def test_many_texts_come_back_in_order(model: Embedder) -> None:
    texts = texts_of(700)
    together = model.embed(texts)
    assert together.shape == (700, 32)
    assert together.dtype == np.float32
    for index in (0, 1, 350, 699):
        np.testing.assert_allclose(together[index], model.embed(texts[index])[0], atol=1e-5)


def test_duplicates_and_empty_texts(model: Embedder) -> None:
    found = model.embed(["", "the cat", "", "the cat"])
    np.testing.assert_allclose(found[:2], found[2:], atol=1e-6)
    assert np.isfinite(found).all()


def test_no_texts(model: Embedder) -> None:
    assert model.embed([]).shape == (0, 32)
    assert model.embed(iter(())).dtype == np.float32


def test_one_text_or_any_iterable(model: Embedder) -> None:
    expected = model.embed(["the cat"])
    for texts in ("the cat", ("the cat",), iter(["the cat"]), np.array(["the cat"]).tolist()):
        np.testing.assert_array_equal(model(texts), expected)


def test_a_text_beyond_the_maximum_is_cut(model: Embedder) -> None:
    found = model.embed([" ".join(["the"] * count) for count in (46, 47, 5000)])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["the cat", 5], "1"),
        ([None], "0"),
        ([b"the cat"], "0"),
        (["a" * (MAX_TEXT_CHARACTERS + 1)], f"{MAX_TEXT_CHARACTERS:,}"),
        (["\ud800"], "surrogate"),
        (None, "texts is of type NoneType; give a str or a list of them"),
    ],
)
def test_what_is_no_text_is_refused(model: Embedder, texts: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model.embed(texts)


def test_many_threads_get_what_one_gets(model: Embedder) -> None:
    jobs = [texts_of(count) for count in (1, 3, 40, 200)] * 8
    expected = [model.embed(texts) for texts in jobs]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(model.embed, jobs))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_closing_is_not_the_end(model: Embedder) -> None:
    texts = texts_of(300)
    before = model.embed(texts)
    model.close()
    np.testing.assert_allclose(model.embed(texts), before, atol=1e-6)


@pytest.mark.parametrize(("method", "task"), [("score", "text-ranking"), ("label_words", "token-classification")])
def test_a_method_of_another_task_says_which(model: Embedder, method: str, task: str) -> None:
    with pytest.raises(AttributeError, match=rf"is for feature-extraction, {method}\(\) needs one for {task}"):
        getattr(model, method)


def test_many_texts_are_served_from_another_working_directory(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    model = onnxpress.load(tiny_bundle.name, "fp32", threads=2, task="feature-extraction")
    monkeypatch.chdir(tmp_path)
    assert len(model.embed(texts_of(300))) == 300


def test_a_bundle_that_was_replaced_does_not_answer_many_texts(bundle_copy: Path) -> None:
    settings = ServingSettings(threads=2)
    model = onnxpress.load(bundle_copy, "fp32", settings=settings, task="feature-extraction")
    warm = onnxpress.load(
        bundle_copy, "fp32", settings=dataclasses.replace(settings, warm_up=True), task="feature-extraction"
    )
    with (bundle_copy / "onnxpress.json").open("a") as manifest:
        manifest.write("\n")
    assert len(model.embed("a cat")) == 1
    with pytest.raises(InvalidBundleError, match="was replaced or removed after it was loaded"):
        model.embed(texts_of(300))
    assert len(warm.embed(texts_of(300))) == 300


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads is the point
def test_a_fork_is_told_to_load_its_own(model: Embedder) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            model.embed(["the cat"])
        except ForkError as error:
            said = str(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "load" in said
    assert model.embed(["the cat"]).shape == (1, 32)


FORKS = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
import onnxpress

def load():
    return onnxpress.load({bundle!r}, variant="fp32", threads=2)

def end_of(child):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "it hangs"

model = load()
model.embed(["the cat " * 20] * 64)
for own in (False, True, True):
    child = os.fork()
    if child == 0:
        model.close()
        del model
        if own:
            load().embed(["the cat " * 20] * 64)
        sys.exit(0)
    print(end_of(child), flush=True)
model.embed("the cat")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_fork_ends_like_any_process(tiny_bundle: Path) -> None:
    program = FORKS.format(paths=sys.path, bundle=str(tiny_bundle))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n0\n0\n"), done.stderr


@pytest.mark.parametrize("path", [None, 3, b"bundle"])
def test_a_bundle_is_a_path(path: Any) -> None:
    with pytest.raises(InvalidBundleError, match="give the path of its folder"):
        onnxpress.load(path)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_must_be_a_number_of_threads(tiny_bundle: Path, threads: Any) -> None:
    with pytest.raises(InvalidInputError, match="threads"):
        onnxpress.load(tiny_bundle, threads=threads)


def test_a_provider_that_is_not_here_is_an_error_when_named(tiny_bundle: Path) -> None:
    with pytest.raises(ProviderError, match="npu"):
        onnxpress.load(tiny_bundle, providers="npu")


@pytest.mark.parametrize("include", [True, False])
def test_prompts(include: bool, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "where is ", "document": "the "}
    folder = make_embedder(tmp_path / "model", prompts=prompts, include_prompt=include)
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",))
    served = onnxpress.load(onnxpress.export(folder, tmp_path / "bundle", config).folder)
    reference = SentenceTransformer(str(folder), device="cpu")
    texts = ["my parcel", "cat", ""]
    for name in prompts:
        expected = reference.encode(texts, prompt_name=name)
        np.testing.assert_allclose(served.embed(texts, prompt_name=name), expected, atol=1e-5)
    np.testing.assert_allclose(served.embed(texts, prompt="the "), reference.encode(texts, prompt="the "), atol=1e-5)
    with pytest.raises(InvalidInputError, match="'query', 'document'"):
        served.embed(texts, prompt_name="passage")
    with pytest.raises(InvalidInputError, match="not both"):
        served.embed(texts, prompt_name="query", prompt="x")
