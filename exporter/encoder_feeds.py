"""Texts or token sequences to batches of an encoder's graph inputs: sorted by length, little padding, few tokens each.

Which texts, and why, is in calibration.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tokenizers

from onnxpress.exporter.synthetic import synthetic_sequences
from onnxpress.runtime.data.lines import BLOCK
from onnxpress.runtime.encoder import Feeds, pad
from onnxpress.runtime.evaluation.fill_mask import GAP
from onnxpress.runtime.manifest import MaskSettings, TaskSettings, Tensor
from onnxpress.runtime.token_sequences import Encoded
from onnxpress.runtime.tokenizer import Tokenizer

MOST_TOKENS = 65_536
"""Of all sequences together: with the long ones a model takes, fewer do."""
PAIRED = ("text-classification", "zero-shot-classification", "text-ranking", "question-answering")
"""Tasks whose models read pairs of texts."""
_BATCH_TOKENS = 512  # whoever watches a graph holds the activations of one batch of all layers
_BATCH_ROWS = 16
_LEAST_FILLED = 0.75  # a sequence shorter than this share of its batch's longest goes into the next batch


def encode(inputs: Sequence[tuple[str, ...]], tokenizer: Tokenizer, settings: TaskSettings) -> list[Encoded]:
    """Texts, or pairs of texts for tasks that read pairs, cut to the model's length."""
    made: list[str | tuple[str, str]] = []
    for item in inputs:
        texts = [_readable(_with_mask(text, settings.mask)) for text in item]
        if settings.task in PAIRED and len(texts) == 2:
            made.append((texts[0], texts[1]))
        else:
            made += [_prompted(text, settings) for text in texts]
    encodings: list[Encoded] = tokenizer.encode(made)
    return encodings


def synthesize(count: int, tokenizer: Tokenizer, settings: TaskSettings) -> list[Encoded]:
    """Random tokens in place of texts, or of pairs for tasks that always read two."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.no_truncation()
    pairs = settings.task in PAIRED and settings.task != "text-classification"
    made: list[Encoded] = [*synthetic_sequences(backend, count, settings.tokenizer.max_length, pairs)]
    if settings.mask is not None:
        for sequence in made:
            sequence.ids[len(sequence) // 2] = settings.mask.id
    return made


def within(sequences: Sequence[Encoded], most: int = MOST_TOKENS) -> list[Encoded]:
    """As many of the sequences as have `most` tokens together, lying evenly over all of them."""
    total = sum(map(len, sequences))
    if total <= most:
        return list(sequences)
    chosen = np.linspace(0, len(sequences) - 1, max(1, math.floor(len(sequences) * most / total)))
    return [sequences[index] for index in chosen.round().astype(int)]


def batches(sequences: Sequence[Encoded], inputs: Sequence[Tensor], settings: TaskSettings) -> list[Feeds]:
    """The sequences as graph inputs, each int64 [batch, longest] or, of mask_positions, [batch, masks].

    At most a quarter of a batch is padding, and it has 512 tokens at most or one sequence.
    """
    made = []
    for batch in _plan([len(sequence) for sequence in sequences]):
        rows = [sequences[index] for index in batch]
        axes = {tensor.name: tensor.shape[1] for tensor in inputs}
        extra: dict[str, list[list[int]]] = {}
        if "pooling_mask" in axes:
            extra["pooling_mask"] = [[1] * len(row) for row in rows]
        if "mask_positions" in axes:
            mask = settings.mask
            extra["mask_positions"] = [[row.ids.index(mask.id) if mask and mask.id in row.ids else 0] for row in rows]
        made.append(pad(rows, extra, axes, settings.tokenizer))
    return made


def _plan(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences that go together, the longest first."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    plan: list[list[int]] = []
    for index in order:
        longest = lengths[plan[-1][0]] if plan else 0
        full = not plan or len(plan[-1]) == _BATCH_ROWS or (len(plan[-1]) + 1) * longest > _BATCH_TOKENS
        if full or lengths[index] < _LEAST_FILLED * longest:
            plan.append([])
        plan[-1].append(index)
    return plan


def _with_mask(text: str, mask: MaskSettings | None) -> str:
    """A text that a fill-mask model has something to do with."""
    if mask is None or mask.token in text:
        return text
    text = GAP.sub(lambda _: mask.token, text)
    return text if mask.token in text else f"{mask.token} {text}"


def _prompted(text: str, settings: TaskSettings) -> str:
    """With the prompt that the model puts before every text by itself."""
    embedding = settings.embedding
    if embedding is None or embedding.default_prompt_name is None:
        return text
    return embedding.prompts[embedding.default_prompt_name] + text


def _readable(text: str) -> str:
    """What a tokenizer takes: not endless, and without lone surrogates."""
    return text[:BLOCK].encode("utf-8", "replace").decode()
