"""The graph inputs that two variants of a bundle are run on to see where they differ: of texts, or of the gate's cases.

Needs no torch: texts go through the classes that serve the bundle, which make the inputs of every task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.bundle import Bundle
from onnxpress.runtime.data.options import DataOptions
from onnxpress.runtime.encoder import Encoder, FloatArray, Graph
from onnxpress.runtime.encoder import Feeds as EncoderFeeds
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import TASKS, read_evaluation_for
from onnxpress.runtime.generation.replay import rows_of
from onnxpress.runtime.manifest import GenerationSettings
from onnxpress.runtime.model import load
from onnxpress.runtime.tokenizer import Tokenizer
from onnxpress.runtime.verification import CASES_FILE, Case, load_cases
from onnxpress.runtime.workload import work_of

MOST_EXAMPLES = 32
"""Of an evaluation; more would tell the same."""
_MOST_TOKENS = 512

Feeds = dict[str, npt.NDArray[Any]]


def make_feeds(
    bundle: Bundle,
    variant: str,
    texts: Sequence[str] = (),
    evaluation: Sequence[Path] = (),
    data: DataOptions = DataOptions(),
) -> list[Feeds]:
    """Inputs of some runs.

    Args:
        bundle: an opened bundle.
        variant: the one that is the reference.
        texts: what to run; with neither these nor `evaluation`, the real texts the bundle was verified on.
        evaluation: files of the task's examples, whose labels do not matter here.
        data: how these are read.

    Raises:
        InvalidInputError: a text or a file cannot be used.
    """
    manifest = bundle.manifest
    generation = manifest.generation
    data = dataclasses.replace(data, samples=min(data.samples or MOST_EXAMPLES, MOST_EXAMPLES))
    if generation is not None:
        return [prefill(row, generation) for row in _token_rows(bundle, generation, texts, evaluation, data)]
    if not texts and not evaluation:
        return _unpadded(bundle)
    model = load(bundle.folder, variant=variant, threads=1)
    recorder = _Recorder(model.encoder.graph)
    model.encoder = Encoder(recorder, manifest.tokenizer, manifest.inputs, manifest.outputs)
    if texts:
        work_of(model)(list(texts))
    if evaluation:
        read = read_evaluation_for(evaluation, manifest.task, manifest.labels, data)
        TASKS[manifest.task].ask(model, read.examples)
    model.close()
    return recorder.feeds


def _real_cases(bundle: Bundle) -> list[Case]:
    return [case for case in load_cases(bundle.path_of(CASES_FILE)) if case.real]


def _unpadded(bundle: Bundle) -> list[Feeds]:
    """The rows of the real cases, each by itself, without its padding, and once."""
    axes = {tensor.name: tensor.shape[1] for tensor in bundle.manifest.inputs}
    found: dict[bytes, Feeds] = {}
    for case in _real_cases(bundle):
        for row in np.flatnonzero(~case.padded_rows):
            kept = np.flatnonzero(case.feeds["attention_mask"][row])
            feeds = {
                name: values[row : row + 1, kept] if axes[name] == "sequence" else values[row : row + 1] - kept[0]
                for name, values in case.feeds.items()  # the latter: positions of tokens
            }
            found.setdefault(feeds["input_ids"].tobytes(), feeds)
    return list(found.values())


class _Recorder:
    """A graph that remembers what it is given."""

    workers = 1

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.feeds: list[Feeds] = []

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        return [[index] for index in range(len(lengths))]  # no padding, whose values mean nothing

    def run(self, feeds: EncoderFeeds, alone: bool) -> list[FloatArray]:
        self.feeds.append({**feeds})
        return self._graph.run(feeds, alone)


def _token_rows(
    bundle: Bundle,
    settings: GenerationSettings,
    texts: Sequence[str],
    evaluation: Sequence[Path],
    data: DataOptions,
) -> list[list[int]]:
    """Token ids of prompts."""
    if not texts and not evaluation:
        return [row for case in _real_cases(bundle) for row in rows_of(case.feeds)]
    tokenizer = Tokenizer(bundle.path_of(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)
    read: list[str] = []
    if evaluation:
        read = read_evaluation_for(evaluation, bundle.manifest.task, None, data).texts[:MOST_EXAMPLES]
    most = min(_MOST_TOKENS, settings.context)
    rows = [list(encoding.ids[:most]) for encoding in tokenizer.encode([*texts, *read])]
    if not any(rows):
        raise InvalidInputError("the texts have no token at all; give others")
    return [row for row in rows if row]


def prefill(tokens: Sequence[int], settings: GenerationSettings) -> Feeds:
    """Inputs of a decoder graph that reads a prompt into an empty cache, with the logits of all of its tokens."""
    length = len(tokens)
    places = np.arange(length, dtype=np.int64)[None]
    cache = {
        f"past.{layer}.{kind}": np.zeros((1, heads, 0, size), np.float32)
        for layer, (heads, size) in enumerate(zip(settings.kv_heads, settings.head_dims, strict=True))
        for kind in ("key", "value")
    }
    return {
        "input_ids": np.array([tokens], np.int64),
        "position_ids": places,
        "logit_index": places,
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array([length], np.int32),
        **cache,
    }
