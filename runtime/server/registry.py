"""The models of a server: loaded, warmed up, found by name, closed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.model import load
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.settings import Limits, ServedBundle
from onnxpress.runtime.server.sharing import serving_settings


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that is ready, and its runner."""

    name: str
    task: str
    """The task of its bundle, such as `feature-extraction`."""
    model: Any
    runner: BatchingRunner
    loaded: int
    """When, in seconds since 1970."""

    @property
    def generator(self) -> Generator:
        """Of a model that writes."""
        assert isinstance(self.model, Generator)
        return self.model


class Models:
    """All of them."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._by_name = {model.name: model for model in models}

    @classmethod
    def load(cls, bundles: Iterable[ServedBundle], limits: Limits, threads: int | None = None) -> Models:
        """Load all and run each once.

        Args:
            bundles: with different names.
            limits: for their runners.
            threads: of those that do not say a number; None for what `load` chooses.

        Raises:
            OnnxpressError: as of `onnxpress.load`; the text begins with the name.
        """
        return cls(_open(bundle, limits, threads) for bundle in bundles)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    def find(self, name: str | None, *tasks: str) -> ServedModel:
        """The model of a request.

        Args:
            name: as the request has it; None for the only model with one of the tasks.
            tasks: that the route is for.

        Raises:
            RequestError: there is none, or another task, or without a name several.
        """
        if name is None:
            fitting = [model for model in self if model.task in tasks]
            if len(fitting) == 1:
                return fitting[0]
            known = ", ".join(model.name for model in fitting) or "none"
            raise RequestError(
                400 if fitting else 404,
                f"say which model: those for {' or '.join(tasks)} here are: {known}",
                param="model",
                code="model_not_found",
            )
        found = self._by_name.get(name)
        if found is None:
            raise RequestError(
                404,
                f"there is no model {name[:100]!r}; there are: {', '.join(self._by_name)}",
                param="model",
                code="model_not_found",
            )
        if found.task not in tasks:
            raise RequestError(
                400,
                f"the model {name!r} is for {found.task}; this route is for {' or '.join(tasks)}",
                param="model",
                code="wrong_task",
            )
        return found

    def close(self, *, timeout: float | None = None) -> None:
        """Finish what was taken, and give back what they hold."""
        for served in self:
            served.runner.close(timeout=timeout)
            served.model.close()


def _open(bundle: ServedBundle, limits: Limits, threads: int | None) -> ServedModel:
    settings = serving_settings(bundle)
    model = load(
        bundle.path, bundle.variant, list(bundle.providers) or None, bundle.threads or threads, settings=settings
    )
    runner = BatchingRunner(model, most_waiting=limits.waiting, seconds=limits.seconds, most_tokens=limits.tokens)
    served = ServedModel(bundle.called, model.bundle.manifest.task, model, runner, int(time.time()))
    warm_up(served)
    return served


def warm_up(served: ServedModel) -> None:
    """Run it once, so that the first request is not slower than others."""
    text = "warm up"
    match served.task:
        case "text-generation":
            served.model.generate(text, max_new_tokens=2)
        case "text-ranking":
            served.model.rank(text, [text])
        case "question-answering":
            served.model.answer(text, text)
        case "fill-mask":
            served.model.fill(served.model.mask_token)
        case "token-classification":
            served.model.tag(text)
        case "feature-extraction":
            served.model.embed(text)
        case "text-classification" | "zero-shot-classification":
            served.model.classify(text)
        case _:
            raise InvalidInputError(f"{served.name}: the task {served.task} has no route")
