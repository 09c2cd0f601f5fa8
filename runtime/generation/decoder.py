"""Runs a decoder graph over rows of a key/value cache: new prompts, further pieces of a prompt, or one token a row.

Glossary: B rows in a run, S new tokens of a row (padded on the right), P of them whose logits are wanted, V vocabulary.

A run at batch 1 takes a few milliseconds, so nothing is made anew for a step: the inputs of a run with the same rows
live in the same arrays, bound once together with the cache (bindings.py); a step writes numbers into them. Knows
nothing of requests and texts. One thread uses it at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxpress.runtime.errors import InvalidBundleError, OnnxpressError, ProviderError
from onnxpress.runtime.generation.bindings import (
    LOGIT_INDEX,
    LOGITS,
    Binding,
    DeviceBinding,
    FloatArray,
    close_all,
    graphs_of,
)
from onnxpress.runtime.generation.cache import CacheLayout, KeyValueCache
from onnxpress.runtime.generation.storage import CacheType, DeviceBuffer, DeviceStorage, Storage
from onnxpress.runtime.session import inference_error

if TYPE_CHECKING:
    import onnxruntime

    from onnxpress.runtime.manifest import GenerationSettings

_MOST_BINDINGS = 64
_TYPES: dict[str, CacheType] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}
"""Types of caches, by what onnxruntime calls them."""


class Decoder:
    """An onnxruntime session of a decoder graph together with its cache."""

    def __init__(self, session: onnxruntime.InferenceSession, cache: KeyValueCache) -> None:
        """
        Args:
            session: of a graph with the inputs `input_ids`, `position_ids`, `logit_index`, `seqlens_k`,
                `total_sequence_length` and `past.*` (docs/generation.md).
            cache: of the layout the graph has, in the storage that `storage_of` gives for the session.

        Raises:
            InvalidBundleError: the graph has no `logit_index`, or its cache is not of the layout.
        """
        self.cache = cache
        self.session = session
        self._inputs = {node.name for node in session.get_inputs()}
        if LOGIT_INDEX not in self._inputs:
            raise InvalidBundleError(
                f"the graph has no input {LOGIT_INDEX!r}, the tokens whose logits are wanted; export the bundle again"
            )
        _check_layout(session, cache.layout)
        self.vocabulary = _vocabulary_of(session)
        self._bindings: dict[tuple[int, int, int, bool], Binding] = {}
        self._logits: FloatArray = np.empty((0, self.vocabulary), np.float32)
        self._storage = cache.storage if isinstance(cache.storage, DeviceStorage) else None
        self._logits_there: DeviceBuffer | None = None  # where a device writes them
        self.graphs = None if self._storage is None else graphs_of(session)

    def start(self, first_row: int, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Run new prompts of any lengths together, in the empty rows from `first_row` on.

        Returns:
            logits after the last token of each: float32 [B, V], valid until the next run.
        """
        lengths = [len(prompt) for prompt in prompts]
        binding = self._binding(first_row, len(prompts))
        binding.resize(max(lengths))
        for row, prompt in enumerate(prompts):
            binding.input_ids[row, : len(prompt)] = prompt
            binding.input_ids[row, len(prompt) :] = 0
        binding.position_ids[:] = np.arange(binding.input_ids.shape[1])
        binding.logit_index[:, 0] = np.array(lengths) - 1
        return self._run(binding, first_row, prompts, lengths)

    def extend(self, row: int, tokens: Sequence[int], last: int = 1) -> FloatArray:
        """Run further tokens of one row, which may be empty: the kernels continue several rows only by one token each.

        Args:
            row: of the cache.
            tokens: at least one.
            last: of how many tokens, the last of these, the logits are wanted.

        Returns:
            logits after each of the last tokens: float32 [last, V], valid until the next run.
        """
        past = len(self.cache.tokens[row])
        binding = self._binding(row, 1, last)
        binding.resize(len(tokens))
        binding.input_ids[0] = tokens
        binding.position_ids[0] = np.arange(past, past + len(tokens))
        binding.logit_index[0] = np.arange(len(tokens) - last, len(tokens))
        return self._run(binding, row, [tokens], [past + len(tokens)])

    def step(self, first_row: int, tokens: Sequence[int | None]) -> FloatArray:
        """Run one token for each of the rows from `first_row` on, whatever their lengths.

        Args:
            first_row: of the run.
            tokens: by row. A row with None only keeps its place: what is written behind its tokens, where it must have
                room, does not count, nor do its logits.

        Returns:
            logits after the tokens: float32 [B, V], valid until the next run.
        """
        binding = self._binding(first_row, len(tokens), captured=self.graphs is not None)
        binding.resize(1)
        past = [len(row) for row in self.cache.tokens[first_row : first_row + len(tokens)]]
        binding.set_step([token or 0 for token in tokens], past)
        new = [() if token is None else (token,) for token in tokens]
        return self._run(binding, first_row, new, [length + 1 for length in past])

    def release(self) -> None:
        """Give the memory of the cache back; the next use allocates it anew."""
        self._unbind()
        self.cache.release()

    def _run(
        self, binding: Binding, first_row: int, tokens: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> FloatArray:
        """`lengths`: tokens of each row once these are in, [B]."""
        longest = max(lengths)
        assert longest <= self.cache.capacity, f"{longest} tokens in a cache of {self.cache.capacity}"
        binding.set_lengths(lengths)
        try:
            binding.run()
        except OnnxpressError:  # of the device's driver
            raise
        except Exception as error:
            raise inference_error(error) from error
        for row, new in enumerate(tokens, first_row):
            self.cache.tokens[row].extend(new)
        return binding.logits

    def _binding(self, first_row: int, rows: int, positions: int = 1, captured: bool = False) -> Binding:
        """The bound arrays for these rows, made once for as long as the cache has the same buffers.

        Args:
            first_row: of the run.
            rows: of the run.
            positions: P.
            captured: for decoding steps that become CUDA graphs, whose addresses must not change.
        """
        key = (first_row, rows, positions, captured)
        binding = self._bindings.get(key)
        if binding is not None and binding.version == self.cache.version:
            return binding
        if len(self._bindings) >= _MOST_BINDINGS or (binding is not None):
            self._unbind()
        wanted = rows * positions
        if len(self._logits) < wanted:
            self._unbind()  # they write to the array that is replaced
            self._make_logits(max(wanted, self.cache.rows))
        arguments = (self.session, self.cache, first_row, rows, self._logits[:wanted], self._inputs)
        if self._logits_there is None:
            self._bindings[key] = Binding(*arguments)
        else:
            self._bindings[key] = DeviceBinding(*arguments, self._logits_there, self.graphs, captured)
        return self._bindings[key]

    def _make_logits(self, rows: int) -> None:
        shape = (rows, self.vocabulary)
        if self._storage is None:
            self._logits = np.empty(shape, np.float32)
        else:
            self._logits = self._storage.driver.host_array(shape, np.float32)
            self._logits_there = DeviceBuffer(self._storage.driver, shape, self._logits.itemsize)

    def _unbind(self) -> None:
        close_all(list(self._bindings.values()))
        self._bindings.clear()


def layout_of(session: onnxruntime.InferenceSession, settings: GenerationSettings, storage: Storage) -> CacheLayout:
    """What a graph keeps of each token: sizes from the manifest, the type, in which variants differ, from the graph.

    Raises:
        InvalidBundleError: the type is none of a cache, or there are too few tokens.
        ProviderError: no attention kernel takes it there.
    """
    found = {node.type for node in session.get_inputs() if node.name.startswith("past.")}
    for name in found - _TYPES.keys():
        raise InvalidBundleError(f"the graph's cache is {name}, which generation does not keep; use another variant")
    dtype = _TYPES[found.pop()] if found else "float32"
    if dtype not in storage.types:
        raise ProviderError(
            f"the graph's cache is {dtype}; onnxruntime's attention on the {storage.owner} takes "
            f"{' or '.join(storage.types)}; use another variant, or another provider"
        )
    if _vocabulary_of(session) < settings.vocabulary:
        raise InvalidBundleError(
            f"the graph knows {_vocabulary_of(session)} tokens, the manifest says {settings.vocabulary}; export the "
            "bundle again"
        )
    return CacheLayout(settings.kv_heads, settings.head_dims, dtype)


def _vocabulary_of(session: onnxruntime.InferenceSession) -> int:
    """
    Raises:
        InvalidBundleError: the graph has no float32 logits [batch, positions, vocabulary].
    """
    for node in session.get_outputs():
        if node.name == LOGITS and node.type == "tensor(float)" and len(node.shape) == 3:
            size = node.shape[-1]
            if isinstance(size, int) and size > 0:
                return size
    raise InvalidBundleError(
        f"the graph has no float32 output {LOGITS!r} [batch, positions, vocabulary]; export the bundle again"
    )


def _check_layout(session: onnxruntime.InferenceSession, layout: CacheLayout) -> None:
    """Buffers of another shape or type than the graph's would be read as what they are not."""
    caches = [node for node in session.get_inputs() if node.name.startswith("past.")]
    found = {
        node.name: (*node.shape[1::2], _TYPES.get(node.type, node.type)) for node in caches if len(node.shape) == 4
    }
    expected = {
        f"past.{layer}.{kind}": (heads, size, layout.dtype)
        for layer, (heads, size) in enumerate(zip(layout.kv_heads, layout.head_dims, strict=True))
        for kind in ("key", "value")
    }
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise InvalidBundleError(
                f"the graph's cache {name!r} is {found.get(name)} (heads, head size, type), the manifest says "
                f"{expected.get(name)}; export the bundle again"
            )
