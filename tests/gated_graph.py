"""A model whose graph can be held, so that tests decide what waits and what runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from onnxpress.runtime.encoder import Encoder, Feeds
from onnxpress.runtime.manifest import EmbeddingSettings, TaskSettings, Tensor, TokenizerSettings
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.tasks import Embedder
from onnxpress.runtime.tokenizer import Tokenizer

SECONDS = 30  # after which a test has hung
WORDS = 20


class GatedGraph:
    """A graph that can be held: the vector of a sequence is the sum of its tokens and their number."""

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Semaphore(0)
        self.runs: list[tuple[int, bool, str]] = []
        self.lengths: list[list[int]] = []
        self.fail_on: int | None = None

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        return [list(range(len(lengths)))]

    def run(self, feeds: Feeds, alone: bool) -> list[npt.NDArray[np.float32]]:
        ids, mask = feeds["input_ids"], feeds["attention_mask"]
        self.runs.append((len(ids), alone, threading.current_thread().name))
        self.lengths.append(mask.sum(axis=1).tolist())
        self.begun.release()
        assert self.open.wait(SECONDS)
        if self.fail_on is not None and (ids == self.fail_on).any():
            raise ValueError(f"token {self.fail_on}")
        return [np.stack([(ids * mask).sum(axis=1), mask.sum(axis=1)], axis=1).astype(np.float32)]

    def hold(self) -> None:
        self.open.clear()

    def wait_until_begun(self) -> None:
        assert self.begun.acquire(timeout=SECONDS)


def make_model(folder: Path, graph: GatedGraph) -> Embedder:
    """Over words `w0` to `w19`, whose ids are their numbers; a text may have 64 of them."""
    words = {f"w{number}": number for number in range(WORDS)}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    settings = TokenizerSettings("tokenizer.json", 64, 0)
    inputs = [Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    encoder = Encoder(graph, settings, inputs, [Tensor("sentence_embedding", "float32", ("batch", "2"))])
    embedding = EmbeddingSettings(2, ("mean",), False, "cosine", True, {}, None)
    task = TaskSettings("feature-extraction", settings, embedding, None, None)
    return Embedder(encoder, Tokenizer(folder / "tokenizer.json", settings), task)


def vector(text: str) -> list[float]:
    ids = [int(word[1:]) for word in text.split()]
    return [float(sum(ids)), float(len(ids))]


@pytest.fixture
def graph() -> Iterator[GatedGraph]:
    graph = GatedGraph()
    yield graph
    graph.open.set()


@pytest.fixture
def new_runner(graph: GatedGraph, tmp_path: Path) -> Iterator[Callable[..., BatchingRunner]]:
    runners: list[BatchingRunner] = []

    def make(**options: Any) -> BatchingRunner:
        runners.append(BatchingRunner(make_model(tmp_path, graph), **options))
        return runners[-1]

    yield make
    graph.open.set()
    for runner in runners:
        assert runner.close(timeout=SECONDS)
