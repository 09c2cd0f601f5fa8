"""The inputs every variant is verified on: real texts, and shapes and masks that break graphs in practice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers

from onnxpress.exporter.decoder_cases import decoder_inputs
from onnxpress.exporter.encoder_feeds import PAIRED
from onnxpress.exporter.reference import Reference
from onnxpress.exporter.texts import REAL_TEXTS, SECOND_TEXTS
from onnxpress.runtime.encoder import Feeds, FloatArray
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.verification import Case, IntArray

_LARGEST_ACTIVATION = 2**24
"""Elements of the largest attention matrix of an input: it is kept for every layer when ranges are looked for."""


def make_cases(reference: Reference) -> list[Case]:
    """Build the inputs and let the reference compute what is expected.

    Raises:
        UnsupportedModelError: the reference gives values that are not finite.
    """
    if reference.settings.generation is not None:
        limits = reference.limits
        made = decoder_inputs(reference.backend, limits.vocabulary, limits.positions)
    else:
        made = _CaseMaker(reference).inputs()
    return [_case(name, real, feeds, reference.compute(feeds)) for name, real, feeds in made]


class _CaseMaker:
    """Builds inputs for a model with known limits."""

    def __init__(self, reference: Reference) -> None:
        self._axes = {tensor.name: tensor.shape[1] for tensor in reference.inputs}
        self._settings = reference.settings
        self._backend = reference.backend
        self._vocabulary = reference.limits.vocabulary
        self._max_positions = reference.limits.positions
        self._affordable = math.isqrt(_LARGEST_ACTIVATION // reference.limits.heads)
        self._rng = np.random.default_rng(20)

    def inputs(self) -> list[tuple[str, bool, Feeds]]:
        """Name, whether its rows are real texts, and graph inputs.

        Batch 1 and many, length 1 and the most the graph takes, left and right padding, a fully padded row, segment
        ids where the model has them, and none of the traced sizes (2 x 7).
        """
        texts = [self._text(text) for text in REAL_TEXTS]
        count = len(texts)
        made = [
            ("one real text", True, self._texts(texts[:1], left=False)),
            (f"{count} real texts, right padding", True, self._texts(texts, left=False)),
            (f"{count} real texts, left padding", True, self._texts(texts, left=True)),
        ]
        if self._settings.task in PAIRED:
            pairs = [self._backend.encode(*pair) for pair in zip(REAL_TEXTS, SECOND_TEXTS, strict=True)]
            made.append((f"{count} real pairs of texts", True, self._texts(pairs, left=False)))
        made += [(name, False, feeds) for name, feeds in self._random_inputs()]
        return made

    def _random_inputs(self) -> list[tuple[str, Feeds]]:
        longest = self._settings.tokenizer.max_length
        length = min(longest, self._affordable)
        limit = "the maximum" if length == longest else f"of {longest} at most"
        made = [
            ("batch 1, length 1", self._random([1])),
            ("batch 5, length 1", self._random([1] * 5)),
            ("batch 2, length 2", self._random([2] * 2)),
            ("batch 3, length 17", self._random([17] * 3)),
            ("batch 5, lengths 1 to 64, right padding", self._random([64, 1, 33, 8, 50])),
            ("batch 5, lengths 1 to 64, left padding", self._random([64, 1, 33, 8, 50], left=True)),
            ("batch 3 with a fully padded row", self._random([12, 0, 9])),
            (f"batch 2, length {length} ({limit})", self._random([length, max(1, length - 3)])),
        ]
        positions = min(self._max_positions, self._affordable)
        if positions > length:
            limit = "the positions' limit" if positions == self._max_positions else f"of {self._max_positions} at most"
            made.append((f"batch 1, length {positions} ({limit})", self._random([positions])))
        if "token_type_ids" in self._axes:
            feeds = self._random([24, 11])
            feeds["token_type_ids"] = self._rng.integers(0, 2, feeds["input_ids"].shape, dtype=np.int64)
            made.append(("batch 2, two segments", feeds))
        if "pooling_mask" in self._axes:
            feeds = self._random([24, 11])
            feeds["pooling_mask"][:, :4] = 0
            made.append(("batch 2, a prompt left out of pooling", feeds))
        if "mask_positions" in self._axes:
            feeds = self._random([24, 11])
            feeds["mask_positions"] = np.array([[5, 23, 5], [10, 0, 7]])
            made.append(("batch 2, three masks", feeds))
        return made

    def _text(self, text: str) -> tokenizers.Encoding:
        if self._settings.mask is not None:  # the gap comes first, where it survives being cut
            text = f"{self._settings.mask.token} {text}"
        return self._backend.encode(text)

    def _texts(self, encodings: Sequence[tokenizers.Encoding], left: bool) -> Feeds:
        feeds = self._padded([np.array(encoding.ids, np.int64) for encoding in encodings], left)
        width = feeds["input_ids"].shape[1]
        for row, encoding in enumerate(encodings):
            start = width - len(encoding) if left else 0
            if "token_type_ids" in feeds:
                feeds["token_type_ids"][row, start : start + len(encoding)] = encoding.type_ids
            if self._settings.mask is not None and self._settings.mask.id in encoding.ids:
                feeds["mask_positions"][row] = start + encoding.ids.index(self._settings.mask.id)
        return feeds

    def _random(self, lengths: Sequence[int], left: bool = False) -> Feeds:
        limit = self._max_positions
        rows = [self._rng.integers(0, self._vocabulary, min(length, limit), dtype=np.int64) for length in lengths]
        feeds = self._padded(rows, left)
        if "mask_positions" in self._axes:
            width = feeds["input_ids"].shape[1]
            starts = [width - len(row) if left else 0 for row in rows]
            inside = [int(self._rng.integers(0, max(1, len(row)))) for row in rows]
            positions = np.array(starts, np.int64) + np.array(inside, np.int64)
            feeds["mask_positions"] = np.minimum(positions, width - 1)[:, None]
        return feeds

    def _padded(self, rows: Sequence[IntArray], left: bool) -> Feeds:
        width = max(1, *(len(row) for row in rows))
        widths = {"sequence": width, "masks": 1}
        feeds = {name: np.zeros((len(rows), widths[axis]), np.int64) for name, axis in self._axes.items()}
        feeds["input_ids"][:] = self._settings.tokenizer.pad_id
        if "token_type_ids" in feeds:
            feeds["token_type_ids"][:] = self._settings.tokenizer.pad_type_id
        for index, row in enumerate(rows):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            feeds["input_ids"][index, span] = row
            feeds["attention_mask"][index, span] = 1
            if "token_type_ids" in feeds:
                feeds["token_type_ids"][index, span] = 0
        if "pooling_mask" in feeds:
            feeds["pooling_mask"] = feeds["attention_mask"].copy()
        return feeds


def _case(name: str, real: bool, feeds: Feeds, expected: Mapping[str, FloatArray]) -> Case:
    rows = feeds["attention_mask"].any(axis=1)
    for output, value in expected.items():
        if not np.isfinite(value[rows]).all():
            raise UnsupportedModelError(
                f"the model itself gives values in {output} that are not finite numbers, on {name!r}; are its weights "
                "damaged?"
            )
    return Case(name, feeds, {output: np.asarray(value) for output, value in expected.items()}, real)
