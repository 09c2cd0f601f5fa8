"""Texts that weights of few bits are rounded on: read from files, and cut into inputs of a decoder's graph.

What is done with them is in quantize/gptq.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import onnx

from onnxpress.runtime.data.lines import read_text
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.perplexity import encode_whole
from onnxpress.runtime.tables import read_texts

if TYPE_CHECKING:
    import tokenizers

TOKENS = 32768
"""Taken of the texts at most; of a small model, half as many do as well."""
_WINDOW = 512
_FORMS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}
_COLUMN = "text"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was given to calibrate on."""

    texts: tuple[str, ...]
    files: tuple[str, ...]
    """Names, without folders."""
    sha256: str
    """Of the texts."""


def read_calibration(paths: Sequence[Path]) -> Calibration:
    """Read files: JSONL, CSV and TSV give a text for each row (the key or column `text`), any other is one text.

    Raises:
        InvalidInputError: a file cannot be read, or there is no text in it; the sentence says which.
    """
    texts = tuple(text for path in paths for text in _texts(path))
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return Calibration(texts, tuple(path.name for path in paths), digest.hexdigest())


def _texts(path: Path) -> list[str]:
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        found = [read_text(path, "calibration")]
    else:
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise InvalidInputError(f"the calibration file {path} cannot be read: {error.strerror}") from error
        found = []
        for line in read_texts(lines, form, _COLUMN):
            if line.text is None:
                raise InvalidInputError(f"{path}, line {line.number}: {line.error}")
            found.append(line.text)
    if not any(text.strip() for text in found):
        raise InvalidInputError(f"the calibration file {path} has no text in it; give some 30,000 tokens of text")
    return found


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
    if value.name == "position_ids":
        return np.arange(count, dtype=dtype)[None]
    if value.name == "total_sequence_length":
        return np.array([count], dtype)
    return np.full([1] * len(sizes), count - 1, dtype)  # indices of tokens: the row's last, and whose logits to give
