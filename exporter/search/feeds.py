"""Inputs of a graph for the search: real ones to compare outputs on, and those it is timed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from onnxpress.exporter.building import real_cases
from onnxpress.exporter.calibration import PrefillFeeds, calibration_rows, encoder_feeds
from onnxpress.exporter.state import TOKENIZER_FILE, State
from onnxpress.quantize.sensitivity import Compared
from onnxpress.runtime.encoder import IntArray
from onnxpress.runtime.evaluation import Evaluation
from onnxpress.runtime.evaluation.text_generation import Passage
from onnxpress.runtime.generation.replay import LOGITS_BYTES
from onnxpress.runtime.verification import Case

Feeds = Mapping[str, npt.NDArray[Any]]

_TOKENS = 2048
"""Of real texts: divergences then differ by some percent from those of other texts."""
_LOGITS, _LOGIT_INDEX = "logits", "logit_index"
_DECODED_AFTER = 128
_TOGETHER = 16


def outputs_of(state: State) -> list[Compared]:
    """The outputs that are compared, and how: by what the task makes of them."""
    assert state.facts is not None
    settings = state.facts.settings
    if settings.generation is not None:
        return [Compared(_LOGITS, "softmax", "rows")]
    found = []
    for tensor in state.facts.outputs:
        by_token = tensor.shape[1:2] == ("sequence",)
        if settings.task == "question-answering":
            found.append(Compared(tensor.name, "softmax", "choices"))
        elif settings.mask is not None:
            found.append(Compared(tensor.name, "softmax"))
        elif settings.labels is not None and len(settings.labels.names) > 1:
            function = {"softmax": "softmax", "sigmoid": "sigmoid"}.get(settings.labels.function, "values")
            found.append(Compared(tensor.name, function, "rows" if by_token else None))  # type: ignore[arg-type]
        else:
            found.append(Compared(tensor.name, "values", "rows" if by_token else None))
    return found


def sample_feeds(state: State, evaluation: Evaluation) -> list[Feeds]:
    """Inputs made of the texts that were given to calibrate on, or else of examples: some thousand tokens.

    Args:
        state: of the export.
        evaluation: the examples.
    """
    if state.task == "text-generation":
        return _decoder_feeds(state, evaluation)
    return _some(encoder_feeds(state, evaluation)[0])


def _some(feeds: Sequence[dict[str, IntArray]]) -> list[Feeds]:
    """Batches of short and long texts, as many tokens as are enough."""
    total = sum(int(feed["attention_mask"].sum()) for feed in feeds)
    count = max(1, round(len(feeds) * min(1.0, _TOKENS / max(1, total))))
    return [feeds[index] for index in np.linspace(0, len(feeds) - 1, count).round().astype(int)]


def _decoder_feeds(state: State, evaluation: Evaluation) -> list[Feeds]:
    """Each window of text by itself, the logits of all its tokens, or of the last as far as there is memory."""
    assert state.facts is not None
    assert state.fused is not None
    assert state.facts.settings.generation is not None
    tokenizer = tokenizers.Tokenizer.from_file(str(state.folder / TOKENIZER_FILE))
    rows = calibration_rows(
        [example.text for example in evaluation.examples if isinstance(example, Passage)],
        tokenizer,
        state.facts.settings.tokenizer.max_length,
    )
    rows = sorted((row for row in rows if row), key=len, reverse=True)
    kept, tokens = [], 0
    for row in rows:
        if tokens >= _TOKENS:
            break
        kept.append(row)
        tokens += len(row)
    most = max(1, LOGITS_BYTES // (4 * state.facts.settings.generation.vocabulary))
    made: list[Feeds] = []
    for feed in PrefillFeeds(state.fused.path, kept):
        count = feed["input_ids"].shape[1]
        made.append({**feed, _LOGIT_INDEX: np.arange(max(0, count - most), count)[None]})
    return made


def timed_cases(state: State) -> list[Case]:
    """What graphs are timed on: real texts, of an encoder whose latency counts one; of a decoder the next token of one
    request, or of several together where throughput counts."""
    alone = state.config.objective == "latency"
    if state.task != "text-generation":
        return real_cases(state)[:1] if alone else real_cases(state)
    assert state.fused is not None
    (one,) = PrefillFeeds(state.fused.path, [[0] * _DECODED_AFTER])
    batch = 1 if alone else _TOGETHER
    feeds = {name: np.repeat(value, batch, axis=0) for name, value in one.items() if name != "total_sequence_length"}
    feeds |= {name: feeds[name][:, -1:] for name in ("input_ids", "position_ids")}
    feeds |= {_LOGIT_INDEX: np.zeros_like(feeds[_LOGIT_INDEX]), "total_sequence_length": one["total_sequence_length"]}
    return [Case("next token", feeds, {}, real=True)]
