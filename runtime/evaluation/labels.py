"""Labels of a file to the labels of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.rows import shown

_MOST_SHOWN = 50


class Labels:
    """A model's labels, by the names and numbers that files use for them."""

    def __init__(self, names: Sequence[str], given: Mapping[str, str] | None = None) -> None:
        """
        Args:
            names: in the order of the model's logits; without any, the labels of a file are taken as they are.
            given: labels as a file has them, and which of the model's each is; others are looked for by themselves.

        Raises:
            InvalidInputError: the model has no such label.
        """
        self.names = tuple(names)
        folded = [name.casefold() for name in names]
        # The first of two equal names is the one a prediction's index leads to.
        self._exact = {name: name for name in names}
        self._any_case = {name.casefold(): name for name in names if folded.count(name.casefold()) == 1}
        self._given: dict[str, str] = {}
        wanted = {label: self.get(f"the label mapping {label}={name}", name) for label, name in (given or {}).items()}
        self._given = wanted

    def find(self, value: Any) -> str | None:
        """The model's name of a label given by name, in any case if that is unambiguous, or by index; else None.

        Names come first: of a model with the labels "1" to "5", 1 is the label "1".
        """
        if isinstance(value, float) and value.is_integer():  # a column with gaps, written by pandas
            value = int(value)
        if not isinstance(value, str | int) or value == "":
            return None
        text = str(value).lower() if isinstance(value, bool) else str(value).strip()  # as JSON writes them
        if text in self._given:
            return self._given[text]
        if not self.names:
            return text if isinstance(value, str) else None
        found = self._exact.get(text) or self._any_case.get(text.casefold())
        if found is not None or isinstance(value, bool):
            return found
        is_index = text.isdecimal() and len(text) <= 9
        return self.names[int(text)] if is_index and int(text) < len(self.names) else None

    def get(self, place: str, value: Any) -> str:
        """The same as `find`, for a label that has to be there.

        Raises:
            InvalidInputError: the model has no such label.
        """
        found = self.find(value)
        if found is None:
            raise InvalidInputError(f"{place}: {self._complaint(value)}")
        return found

    def _complaint(self, value: Any) -> str:
        if not self.names:
            return f"{shown(value)} is no label's name, and the model has no labels that a number could stand for"
        listed = ", ".join(self.names[:_MOST_SHOWN])
        more = f", ... ({len(self.names)} in all)" if len(self.names) > _MOST_SHOWN else ""
        return (
            f"the model has no label {shown(value)}; it has: {listed}{more} "
            f"(give a name, or an index from 0 to {len(self.names) - 1}, or say which label it is: --eval-labels)"
        )
