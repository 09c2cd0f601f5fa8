"""What is calibrated on: texts that were given, those of the evaluation, or random tokens; and what a graph reads of
them.

How files are read is in calibration_files.py. What is done with the inputs is in quantize/.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import onnx
import tokenizers

from onnxpress.exporter import encoder_feeds as feeds
from onnxpress.exporter.synthetic import synthetic_rows
from onnxpress.runtime.generation.perplexity import encode_whole
from onnxpress.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from onnxpress.exporter.state import State
    from onnxpress.runtime.encoder import Feeds
    from onnxpress.runtime.evaluation import Evaluation

SYNTHETIC = "synthetic"
"""What is given in place of files to calibrate on random tokens."""
ENCODER_SAMPLES = 256
"""Texts at most unless another number is given: ranges of activations hardly change with more."""
DECODER_SAMPLES = 2048
"""The same of decoders, of whose tokens `TOKENS` are used."""
TOKENS = 32768
"""Taken of a decoder's texts at most; of a small model, half as many do as well."""
ALWAYS = ("int8-static", "mixed")
"""Precisions of encoders that cannot be made without calibration."""
_WINDOW = 512
_SEED = 20_261_125


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was given to calibrate on."""

    inputs: tuple[tuple[str, ...], ...]
    """Each a text, or two that a model reads together; none: random tokens."""
    files: tuple[str, ...]
    """Names, without folders."""
    sha256: str
    """Of the texts."""
    rows: int
    """How many texts there were; more than `inputs` where a sample was drawn."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts."""
        return tuple(text for item in self.inputs for text in item)


def uses_calibration(state: State, precision: str) -> bool:
    """Whether a variant is calibrated: always, or only if something was given to do so."""
    if state.task == "text-generation":
        return precision == "int4" and state.calibration is not None
    return precision in ALWAYS or (precision == "int8" and state.calibration is not None)


def encoder_feeds(state: State, evaluation: Evaluation | None = None) -> tuple[list[Feeds], dict[str, Any]]:
    """Inputs of an encoder's graph to calibrate on, the same at every call, and what report.json says of them.

    Texts that were given with the option `calibration` come first, then those of the evaluation, then random tokens.
    Of an evaluation that a search halves, those of the half it searches with: the other one stays unseen.
    The facts are JSON data that stand for the inputs in the key of a cache, too.

    Args:
        state: after the step that loads.
        evaluation: takes the place of the state's own.
    """
    assert state.facts is not None
    settings, given = state.facts.settings, state.calibration
    tokenizer = Tokenizer(state.folder / settings.tokenizer.file, settings.tokenizer)
    count = state.config.calibration_samples or ENCODER_SAMPLES
    evaluation = evaluation or _seen(state)
    facts: dict[str, Any] = {"source": "files", "files": [], "sha256": None}
    if given is not None and given.inputs:
        rows, chosen = given.rows, given.inputs
        facts |= {"files": list(given.files), "sha256": given.sha256}
    elif given is None and evaluation is not None:
        inputs = [item for example in evaluation.examples for item in example.inputs]
        rows, chosen = len(inputs), tuple(random.Random(_SEED).sample(inputs, min(count, len(inputs))))
        facts |= {"source": "evaluation", "files": list(evaluation.files), "sha256": evaluation.sha256}
    else:
        rows, chosen = 0, ()
        facts["source"] = SYNTHETIC
    if chosen:
        sequences = feeds.encode(chosen, tokenizer, settings)
    else:
        sequences = feeds.synthesize(count, tokenizer, settings)
    if state.config.calibration_samples is None:
        sequences = feeds.within(sequences)
    facts |= {"samples": len(sequences), "rows": rows or len(sequences), "tokens": sum(map(len, sequences))}
    return feeds.batches(sequences, state.facts.inputs, settings), facts


def _seen(state: State) -> Evaluation | None:
    """The examples that graphs may be made with."""
    from onnxpress.exporter.search.splits import split  # of a package that reads this module

    splits = split(state.evaluation) if state.searches and state.evaluation is not None else None
    return state.evaluation if splits is None else splits.search


def decoder_rows(state: State, calibration: Calibration) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids that a decoder is calibrated on, and what report.json says of them."""
    assert state.facts is not None
    settings = state.facts.settings.tokenizer
    context = settings.max_length
    tokenizer = tokenizers.Tokenizer.from_file(str(state.folder / settings.file))
    if calibration.inputs:
        rows = calibration_rows(calibration.texts, tokenizer, context)
        facts: dict[str, Any] = {"source": "files", "files": list(calibration.files), "sha256": calibration.sha256}
        facts |= {"samples": len(calibration.inputs), "rows": calibration.rows}
    else:
        rows = synthetic_rows(tokenizer, min(_WINDOW, context), TOKENS)
        facts = {"source": SYNTHETIC, "files": [], "sha256": None, "samples": len(rows), "rows": len(rows)}
    return rows, facts | {"tokens": sum(map(len, rows))}


def calibration_rows(texts: Sequence[str], tokenizer: tokenizers.Tokenizer, context: int) -> list[list[int]]:
    """Token ids of windows that lie evenly over all texts, without special tokens.

    Args:
        texts: each is tokenized as a whole; windows do not reach from one into the next.
        tokenizer: of the model.
        context: tokens the model takes.
    """
    width = min(_WINDOW, context)
    rows = []
    for text in texts:
        tokens = encode_whole(tokenizer, text)
        rows += [tokens[start : start + width] for start in range(0, len(tokens), width)]
    total = sum(map(len, rows))
    if total > TOKENS:
        chosen = np.linspace(0, len(rows) - 1, max(1, round(len(rows) * TOKENS / total)))
        rows = [rows[index] for index in chosen.round().astype(int)]
    return rows


class PrefillFeeds(Sequence[Mapping[str, npt.NDArray[Any]]]):
    """Inputs of a decoder's graph that run each row of tokens by itself, with nothing before it. Made when asked for:
    the empty caches of all rows would not fit into memory together."""

    def __init__(self, graph: Path, rows: Sequence[Sequence[int]]) -> None:
        """
        Args:
            graph: its file; what inputs it has is read from it.
            rows: token ids, at least one each.
        """
        self._inputs = list(onnx.load(str(graph), load_external_data=False).graph.input)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, npt.NDArray[Any]]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, npt.NDArray[Any]] | list[dict[str, npt.NDArray[Any]]]:
        if isinstance(index, slice):
            return [self._feeds(row) for row in self._rows[index]]
        return self._feeds(self._rows[index])

    def _feeds(self, row: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        return {value.name: _input(value, row) for value in self._inputs}


def _input(value: onnx.ValueInfoProto, row: Sequence[int]) -> npt.NDArray[Any]:
    tensor, count = value.type.tensor_type, len(row)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    sizes = [axis.dim_value for axis in tensor.shape.dim]
    if value.name.startswith("past."):
        return np.zeros((1, sizes[1], count, sizes[3]), dtype)
    if value.name == "input_ids":
        return np.array([row], dtype)
    if value.name in ("position_ids", "logit_index"):  # logits of all: else the last products see one token alone
        return np.arange(count, dtype=dtype)[None]
    if value.name == "total_sequence_length":
        return np.array([count], dtype)
    return np.full([1] * len(sizes), count - 1, dtype)  # the index of the row's last token
