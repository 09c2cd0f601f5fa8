"""The models of a server: loaded, warmed up, found by name, closed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.call_report import BatchReport
from onnxpress.runtime.errors import InvalidInputError, OnnxpressError
from onnxpress.runtime.generation.engine import EngineState
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.model import load
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server.errors import RequestError
from onnxpress.runtime.server.settings import Limits, ServedBundle
from onnxpress.runtime.server.sharing import serving_settings

OnBatch = Callable[[str], Callable[[BatchReport], None]]


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
    def seconds_of_queue(self) -> float:
        """About how long what waits will take: for sequences, as long as those did that were run. A generator does not
        count its answers; of it a second for each request that waits for a row of the cache."""
        state = self.runner.state
        if isinstance(state, EngineState):
            return state.waiting / max(1, state.rows)
        if not state.sequences:
            return 0.0
        workers: int = self.model.encoder.graph.workers
        return state.waiting * state.run_seconds / state.sequences / workers

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
    def load(
        cls,
        bundles: Iterable[ServedBundle],
        limits: Limits,
        threads: int | None = None,
        on_batch: OnBatch | None = None,
    ) -> Models:
        """Load all in their order and run each once. Their manifests are read first, so that a wrong path or variant is
        found before large models are loaded. All share the threads of the process.

        Args:
            bundles: with different names.
            limits: for their runners.
            threads: of those that do not say a number; None for what `load` chooses.
            on_batch: gives, for the name of a model, what hears of its batches.

        Raises:
            OnnxpressError: as of `onnxpress.load`; the text begins with the name. What was loaded is closed.
        """
        wanted = list(bundles)
        for bundle in wanted:
            with _naming(bundle):
                open_bundle(bundle.path).manifest.variant(bundle.variant)
        loaded: list[ServedModel] = []
        try:
            for bundle in wanted:
                with _naming(bundle):
                    loaded.append(_open(bundle, limits, threads, on_batch))
        except BaseException:
            cls(loaded).close(timeout=0)
            raise
        return cls(loaded)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._by_name.values())

    def find(self, name: str | None, *tasks: str) -> ServedModel:
        """The model of a request.

        Args:
            name: as the request has it; None for the only model with the first of the tasks that any model has.
            tasks: that the route is for, the usual one first.

        Raises:
            RequestError: there is none, or another task, or without a name several.
        """
        if name is None:
            return self._only(tasks)
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

    def _only(self, tasks: Sequence[str]) -> ServedModel:
        for task in tasks:
            fitting = [model for model in self if model.task == task]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                names = ", ".join(model.name for model in fitting)
                raise RequestError(
                    400, f"say which model; those for {task} are: {names}", param="model", code="model_missing"
                )
        raise RequestError(
            404, f"no model for {' or '.join(tasks)} is served here", param="model", code="model_not_found"
        )

    def close(self, *, timeout: float | None = None) -> None:
        """Finish what was taken, and give back what they hold."""
        for served in self:
            served.runner.close(timeout=timeout)
            served.model.close()


def _open(bundle: ServedBundle, limits: Limits, threads: int | None, on_batch: OnBatch | None) -> ServedModel:
    model = load(
        bundle.path,
        bundle.variant,
        list(bundle.providers) or None,
        bundle.threads or threads,
        settings=serving_settings(bundle),
    )
    try:
        runner = BatchingRunner(
            model,
            most_waiting=limits.waiting,
            seconds=limits.seconds,
            most_tokens=limits.tokens,
            on_batch=None if on_batch is None else on_batch(bundle.called),
        )
        served = ServedModel(bundle.called, model.bundle.manifest.task, model, runner, int(time.time()))
        warm_up(served)
    except BaseException:
        model.close()
        raise
    return served


@contextlib.contextmanager
def _naming(bundle: ServedBundle) -> Iterator[None]:
    """Errors begin with the name of the bundle they are about."""
    try:
        yield
    except OnnxpressError as error:
        error.args = (f"{bundle.called}: {error}",)
        raise


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
            raise InvalidInputError(f"the task {served.task} has no route")
