"""What the classes of all tasks share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from onnxpress.runtime.encoder import Encoder, SessionGraph
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import TaskSettings
from onnxpress.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from onnxpress.runtime.bundle import Bundle
    from onnxpress.runtime.manifest import Variant
    from onnxpress.runtime.providers import Placement

T = TypeVar("T")


def listed(name: str, items: Iterable[T], wanted: str = "a str or a list of them") -> list[T]:
    """What an argument has, as a list.

    Raises:
        InvalidInputError: it is nothing that has items.
    """
    if not isinstance(items, Iterable):
        raise InvalidInputError(f"{name} is of type {type(items).__name__}; give {wanted}")
    return list(items)


def texts_only(texts: str | Iterable[str]) -> list[str]:
    """One text, or several, as a list.

    Raises:
        InvalidInputError: one is not a str, such as a pair, which this task does not read.
    """
    items = [texts] if isinstance(texts, str) else listed("texts", texts)
    for index, text in enumerate(items):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {index} is of type {type(text).__name__}; give a str")
    return items


# Method -> tasks whose models have it, for the error that a wrong one gets.
_TASKS_OF_METHOD = {
    "embed": "feature-extraction",
    "embed_tokens": "feature-extraction",
    "classify": "text-classification",
    "highest_scores": "text-classification",
    "zero_shot": "zero-shot-classification",
    "rank": "text-ranking",
    "score": "text-ranking",
    "tag": "token-classification",
    "label_words": "token-classification",
    "answer": "question-answering",
    "fill": "fill-mask",
}


def method_of_another_task(name: str, settings: TaskSettings) -> AttributeError:
    """What a model raises that does not have a method of this package, for its task is another one."""
    needed = _TASKS_OF_METHOD[name]
    return AttributeError(
        f"this bundle is for {settings.task}, {name}() needs one for {needed}: export the model with --task {needed}"
    )


class TaskModel:
    """A model that serves one task. Made by `onnxpress.load`; safe to call from many threads."""

    needs: ClassVar[str | None] = None
    """The part of `TaskSettings` that must be there."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, settings: TaskSettings) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.settings = settings

    @property
    def bundle(self) -> Bundle:
        """The bundle it was loaded from."""
        return self._graph.bundle

    @property
    def variant(self) -> Variant:
        """The variant that is served."""
        return self._graph.variant

    @property
    def providers(self) -> tuple[str, ...]:
        """onnxruntime's execution providers, the most wanted first."""
        return self._graph.providers

    @property
    def threads(self) -> int:
        """CPU threads in use."""
        return self._graph.threads

    def placement(self) -> Placement:
        """Which provider each node of the graph runs on, by onnxruntime's own record (docs/placement.md)."""
        return self._graph.placement()

    def close(self) -> None:
        """End the worker threads. The model may be used again; they are then started anew."""
        self.encoder.close()
        if isinstance(self.encoder.graph, SessionGraph):
            self.encoder.graph.rest()

    @property
    def _graph(self) -> SessionGraph:
        graph = self.encoder.graph
        assert isinstance(graph, SessionGraph)  # models in PyTorch are not handed out
        return graph

    def __getattr__(self, name: str) -> Any:
        if name in _TASKS_OF_METHOD:
            raise method_of_another_task(name, self.settings)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
