"""How data is read: which columns, labels and split of it, and how many examples; and the places it is read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from onnxpress.runtime.errors import InvalidInputError

EVALUATION_SAMPLES = 20_000
"""Examples at most unless another number is given: the development sets of GLUE and SQuAD have fewer."""

Purpose = Literal["evaluation", "calibration"]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How data is read that is not written as the task expects it."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name of a column that the task knows (docs/evaluation.md): name of that column in the data."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Label as it stands in the data: name, or index, of the model's label."""
    split: str | None = None
    """Of a dataset that has several; None: the first there is of `SPLITS`."""
    samples: int | None = None
    """Examples to use at most: drawn evenly from all there are, always the same ones. None: as the reader says."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise InvalidInputError(f"{self.samples} samples are asked for; give at least 1")
        taken: dict[str, str] = {}
        for known, column in self.columns.items():
            if column in taken:
                raise InvalidInputError(
                    f"the column {column!r} is given for {taken[column]} and for {known}; a column is one or the other"
                )
            taken[column] = known

    def check_columns(self, known: Mapping[str, str], task: str) -> None:
        """Refuse columns that a task does not know.

        Raises:
            InvalidInputError: the sentence lists those it knows.
        """
        for name in self.columns:
            if name not in known:
                raise InvalidInputError(
                    f"{name!r} is no column of {task}, which has: {', '.join(known)}; write such a one before the =, "
                    "and the data's own name after it"
                )


@dataclasses.dataclass(frozen=True)
class Source:
    """One file or folder, and how to read it."""

    path: Path
    options: DataOptions = DataOptions()
    purpose: Purpose = "evaluation"

    @property
    def suffix(self) -> str:
        """What the file's name ends with, in lower case."""
        return self.path.suffix.lower()

    def refuse_columns(self, form: str) -> None:
        """For a form of data that has no names of columns.

        Raises:
            InvalidInputError: some were given.
        """
        if self.options.columns:
            given = ", ".join(f"{known}={column}" for known, column in self.options.columns.items())
            raise InvalidInputError(f"{self} is {form}, whose columns have no names: {given} cannot be found in it")

    def __str__(self) -> str:
        return f"the {self.purpose} {'folder' if self.path.is_dir() else 'file'} {self.path}"


def parse_mapping(option: str, text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping.

    Args:
        option: where it was given, for an error.
        text: what was given.

    Raises:
        InvalidInputError: a part is no pair, or a name comes before the = twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        left, equals, right = (piece.strip() for piece in part.partition("="))
        if not left or not equals or not right:
            raise InvalidInputError(f"{option} has {part.strip()!r}; give pairs as in known=own,other=its")
        if left in found:
            raise InvalidInputError(f"{option} gives {left!r} twice: {found[left]!r} and {right!r}")
        found[left] = right
    return found
