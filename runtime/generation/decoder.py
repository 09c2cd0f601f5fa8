"""Runs a decoder graph over rows of a key/value cache: new prompts, further pieces of a prompt, or one token a row.

Glossary: B rows in a run, S new tokens of a row (padded on the right), P of them whose logits are wanted, V vocabulary.

A run at batch 1 takes a few milliseconds, so nothing is made anew for a step: the inputs of a run with the same rows
live in the same arrays, bound once together with the cache; a step writes numbers into them. Knows nothing of requests
and texts. One thread uses it at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.generation.cache import CacheLayout, KeyValueCache
from onnxpress.runtime.session import inference_error

if TYPE_CHECKING:
    import onnxruntime

    from onnxpress.runtime.manifest import GenerationSettings

FloatArray = npt.NDArray[np.float32]

_MOST_BINDINGS = 64
_LOGITS = "logits"
_LOGIT_INDEX = "logit_index"


class Decoder:
    """An onnxruntime session of a decoder graph together with its cache."""

    def __init__(self, session: onnxruntime.InferenceSession, cache: KeyValueCache) -> None:
        """
        Args:
            session: of a graph with the inputs `input_ids`, `position_ids`, `logit_index`, `seqlens_k`,
                `total_sequence_length` and `past.*` (docs/generation.md), on the CPU.
            cache: of the layout the graph has.

        Raises:
            InvalidBundleError: the graph has no `logit_index`, or its cache is not of the layout.
        """
        self.cache = cache
        self.session = session
        self._inputs = {node.name for node in session.get_inputs()}
        if _LOGIT_INDEX not in self._inputs:
            raise InvalidBundleError(
                f"the graph has no input {_LOGIT_INDEX!r}, the tokens whose logits are wanted; export the bundle again"
            )
        _check_layout(session, cache.layout)
        self.vocabulary = _vocabulary_of(session)
        self._bindings: dict[tuple[int, int, int], _Binding] = {}
        self._logits: FloatArray = np.empty((0, self.vocabulary), np.float32)

    def start(self, first_row: int, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Run new prompts of any lengths together, in the empty rows from `first_row` on.

        Returns:
            logits after the last token of each: float32 [B, V], valid until the next run.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        binding = self._binding(first_row, len(prompts))
        binding.resize(int(lengths.max()))
        for row, prompt in enumerate(prompts):
            binding.input_ids[row, : len(prompt)] = prompt
            binding.input_ids[row, len(prompt) :] = 0
        binding.position_ids[:] = np.arange(binding.input_ids.shape[1])
        binding.logit_index[:, 0] = lengths - 1
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
        return self._run(binding, row, [tokens], np.array([past + len(tokens)]))

    def step(self, first_row: int, tokens: Sequence[int | None]) -> FloatArray:
        """Run one token for each of the rows from `first_row` on, whatever their lengths.

        Args:
            first_row: of the run.
            tokens: by row. A row with None only keeps its place: what is written behind its tokens, where it must have
                room, does not count, nor do its logits.

        Returns:
            logits after the tokens: float32 [B, V], valid until the next run.
        """
        binding = self._binding(first_row, len(tokens))
        binding.resize(1)
        held = self.cache.tokens[first_row : first_row + len(tokens)]
        lengths = np.array([len(row) for row in held])
        binding.input_ids[:, 0] = [token or 0 for token in tokens]
        binding.position_ids[:, 0] = lengths
        binding.logit_index[:] = 0
        return self._run(binding, first_row, [() if token is None else (token,) for token in tokens], lengths + 1)

    def release(self) -> None:
        """Give the memory of the cache back; the next use allocates it anew."""
        self._bindings.clear()
        self.cache.release()

    def _run(
        self, binding: _Binding, first_row: int, tokens: Sequence[Sequence[int]], lengths: npt.NDArray[np.int_]
    ) -> FloatArray:
        """`lengths`: tokens of each row once these are in, [B]."""
        longest = int(lengths.max())
        assert longest <= self.cache.capacity, f"{longest} tokens in a cache of {self.cache.capacity}"
        binding.seqlens_k[:] = lengths - 1
        binding.total_sequence_length[0] = longest
        try:
            self.session.run_with_iobinding(binding.io)
        except Exception as error:
            raise inference_error(error) from error
        for row, new in enumerate(tokens, first_row):
            self.cache.tokens[row].extend(new)
        return binding.logits

    def _binding(self, first_row: int, rows: int, positions: int = 1) -> _Binding:
        """The bound arrays for these rows, made once for as long as the cache has the same buffers."""
        key = (first_row, rows, positions)
        binding = self._bindings.get(key)
        if binding is not None and binding.version == self.cache.version:
            return binding
        if len(self._bindings) >= _MOST_BINDINGS or (binding is not None):
            self._bindings.clear()
        wanted = rows * positions
        if len(self._logits) < wanted:
            self._bindings.clear()  # they write to the array that is replaced
            self._logits = np.empty((max(wanted, self.cache.rows), self.vocabulary), np.float32)
        self._bindings[key] = _Binding(self.session, self.cache, first_row, rows, self._logits[:wanted], self._inputs)
        return self._bindings[key]


class _Binding:
    """The arrays a run over certain rows reads and writes, bound to the session. Only a change of S binds anew."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        cache: KeyValueCache,
        first_row: int,
        rows: int,
        logits: FloatArray,
        inputs: set[str],
    ) -> None:
        self.io = session.io_binding()
        self.version = cache.version
        self.logits = logits  # [B * P, V]
        self.logit_index = np.zeros((rows, len(logits) // rows), np.int64)
        self.seqlens_k = np.zeros(rows, np.int32)
        self.total_sequence_length = np.zeros(1, np.int32)
        self.input_ids = self.position_ids = np.zeros((rows, 0), np.int64)
        self._inputs = inputs
        for name in (_LOGIT_INDEX, "seqlens_k", "total_sequence_length"):
            self._bind_input(name, getattr(self, name))
        for name, buffer in cache.buffers.items():
            part = buffer[first_row : first_row + rows]
            self._bind_input(name, part)
            self._bind_output(name.replace("past", "present", 1), part)
        self._bind_output(_LOGITS, logits.reshape(*self.logit_index.shape, -1))

    def resize(self, tokens: int) -> None:
        """Make room for `tokens` new tokens a row."""
        if self.input_ids.shape[1] != tokens:
            shape = (len(self.seqlens_k), tokens)
            self.input_ids, self.position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            self._bind_input("input_ids", self.input_ids)
            self._bind_input("position_ids", self.position_ids)

    def _bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        if name in self._inputs:  # a model without positions, for one, has no input for them
            self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: npt.NDArray[Any]) -> None:
        self.io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def layout_of(session: onnxruntime.InferenceSession, settings: GenerationSettings) -> CacheLayout:
    """What a graph keeps of each token: sizes from the manifest, the type, in which variants differ, from the graph.

    Raises:
        InvalidBundleError: the type is one that numpy does not have, or there are too few tokens.
    """
    found = {node.type for node in session.get_inputs() if node.name.startswith("past.")}
    types: dict[str, Literal["float32", "float16"]] = {"tensor(float)": "float32", "tensor(float16)": "float16"}
    for name in found - types.keys():
        raise InvalidBundleError(f"the graph's cache is {name}, which generation does not keep; use another variant")
    if _vocabulary_of(session) < settings.vocabulary:
        raise InvalidBundleError(
            f"the graph knows {_vocabulary_of(session)} tokens, the manifest says {settings.vocabulary}; export the "
            "bundle again"
        )
    return CacheLayout(settings.kv_heads, settings.head_dims, types[found.pop()] if found else "float32")


def _vocabulary_of(session: onnxruntime.InferenceSession) -> int:
    """
    Raises:
        InvalidBundleError: the graph has no float32 logits [batch, positions, vocabulary].
    """
    for node in session.get_outputs():
        if node.name == _LOGITS and node.type == "tensor(float)" and len(node.shape) == 3:
            size = node.shape[-1]
            if isinstance(size, int) and size > 0:
                return size
    raise InvalidBundleError(
        f"the graph has no float32 output {_LOGITS!r} [batch, positions, vocabulary]; export the bundle again"
    )


def _check_layout(session: onnxruntime.InferenceSession, layout: CacheLayout) -> None:
    """Buffers of another shape or type than the graph's would be read as what they are not."""
    types = {"tensor(float)": "float32", "tensor(float16)": "float16"}
    caches = [node for node in session.get_inputs() if node.name.startswith("past.")]
    found = {node.name: (*node.shape[1::2], types.get(node.type, node.type)) for node in caches if len(node.shape) == 4}
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
