"""`onnxpress.load`: a bundle folder to an object that does the bundle's task. No torch, no transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.encoder import Encoder, SessionGraph
from onnxpress.runtime.errors import InvalidBundleError
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.origin import log_origin
from onnxpress.runtime.providers import Asked, choose_providers, graph_of
from onnxpress.runtime.session import import_onnxruntime
from onnxpress.runtime.settings import Preset, ServingSettings, settings_of
from onnxpress.runtime.shared_weights import discard_changed
from onnxpress.runtime.tasks import TASKS
from onnxpress.runtime.tasks.answering import Reader
from onnxpress.runtime.tasks.base import TaskModel
from onnxpress.runtime.tasks.classification import Classifier
from onnxpress.runtime.tasks.embedding import Embedder
from onnxpress.runtime.tasks.filling import Filler
from onnxpress.runtime.tasks.ranking import Reranker
from onnxpress.runtime.tasks.tagging import Tagger
from onnxpress.runtime.tokenizer import Tokenizer
from onnxpress.runtime.tuned import tuned_settings
from onnxpress.runtime.verifying import is_verified_here

Settings = ServingSettings | Preset | None

SERVED: dict[str, type[TaskModel] | type[Generator]] = {**TASKS, "text-generation": Generator}
"""The tasks of bundles, and the classes that serve them."""


class LoadOptions(TypedDict, total=False):
    """What `load` takes by name; its docstring says what each is."""

    providers: Asked
    threads: int | None
    verify: bool
    settings: Settings


# Where the options are given by name, type checkers know the class from the task; else, by position, it is Any.
@overload
def load(
    path: str | Path, variant: str | None = ..., *, task: Literal["feature-extraction"], **options: Unpack[LoadOptions]
) -> Embedder: ...


@overload
def load(
    path: str | Path,
    variant: str | None = ...,
    *,
    task: Literal["text-classification", "zero-shot-classification"],
    **options: Unpack[LoadOptions],
) -> Classifier: ...


@overload
def load(
    path: str | Path, variant: str | None = ..., *, task: Literal["text-ranking"], **options: Unpack[LoadOptions]
) -> Reranker: ...


@overload
def load(
    path: str | Path,
    variant: str | None = ...,
    *,
    task: Literal["token-classification"],
    **options: Unpack[LoadOptions],
) -> Tagger: ...


@overload
def load(
    path: str | Path, variant: str | None = ..., *, task: Literal["question-answering"], **options: Unpack[LoadOptions]
) -> Reader: ...


@overload
def load(
    path: str | Path, variant: str | None = ..., *, task: Literal["fill-mask"], **options: Unpack[LoadOptions]
) -> Filler: ...


@overload
def load(
    path: str | Path, variant: str | None = ..., *, task: Literal["text-generation"], **options: Unpack[LoadOptions]
) -> Generator: ...


@overload
def load(
    path: str | Path,
    variant: str | None = ...,
    providers: Asked = ...,
    threads: int | None = ...,
    verify: bool = ...,
    *,
    task: str | None = ...,
    settings: Settings = ...,
) -> Any: ...


def load(
    path: str | Path,
    variant: str | None = None,
    providers: Asked = None,
    threads: int | None = None,
    verify: bool = False,
    *,
    task: str | None = None,
    settings: Settings = None,
) -> TaskModel | Generator:
    """Open a bundle for serving. Where its figures are those of another machine, that is logged once, under
    "onnxpress" at level INFO; at level WARNING where its 8-bit weights were chosen for another kind of processor.

    Args:
        path: the bundle folder; it may be read-only.
        variant: `fp32`, `int8`, ...; None for the bundle's default.
        providers: `cpu`, `cuda`, `tensorrt`, onnxruntime's names, or options such as `CudaOptions(...)`
            (`onnxpress.runtime.providers`), in order of preference. One that is named and cannot be used is an error.
            None: what the variant was made for, where this machine has it, else the next best; the log says which.
        threads: CPU threads to use; None for what the settings say, which is the cores this process may use unless
            they name a number.
        verify: hash every file first, that of shared weights too.
        task: what the bundle must be for; another one is then an error, and type checkers know the class.
        settings: how to use the machine: `latency`, `balanced`, `small`, `server`, or an object of your own. None: what
            `onnxpress tune` kept for this bundle, machine and onnxruntime, else `balanced`.

    Returns:
        an object of the task's class in `onnxpress.runtime.tasks`: `Embedder`, `Classifier`, `Reranker`, `Tagger`,
        `Reader` or `Filler`; for text-generation a `Generator` (`onnxpress.runtime.generation.generator`).

    Raises:
        InvalidBundleError: the bundle is broken, or has no such variant or task.
        InvalidInputError: `threads` is not a positive number or far more than there are cores, or there are no such
            settings, or they contradict the options of a provider.
        ProviderError: a provider that was named cannot be used; the text says why.
    """
    given = None if settings is None else settings_of(settings)
    if threads is not None:
        ServingSettings(threads)  # an error in it comes before others
    bundle = open_bundle(path, verify=verify)
    manifest = bundle.manifest
    chosen = manifest.variant(variant)
    if manifest.task not in SERVED:
        raise InvalidBundleError(
            f"the bundle's task is {manifest.task!r}, this onnxpress serves: {', '.join(SERVED)}; upgrade onnxpress"
        )
    if task is not None and task != manifest.task:
        raise InvalidBundleError(f"the bundle {path} is for {manifest.task}, {task} was asked for")
    serves = SERVED[manifest.task]
    if serves.needs is not None and getattr(manifest.settings, serves.needs) is None:
        raise InvalidBundleError(f"the manifest says nothing under {serves.needs!r}, which {manifest.task} needs")
    import_onnxruntime()
    chosen_providers = choose_providers(providers, graph_of(bundle, chosen))
    leader = chosen_providers[0].name
    if chosen.status == "unverified" and not is_verified_here(bundle, chosen, leader):
        warnings.warn(
            f"variant {chosen.name!r} is not verified on {leader}; run `onnxpress verify {path}` here",
            stacklevel=2,
        )
    log_origin(bundle, chosen)
    serving = (given or tuned_settings(bundle, chosen) or settings_of(None)).with_threads(threads)
    if verify and serving.share_weights:
        discard_changed(bundle, chosen)
    if serves is Generator:
        return Generator.open(bundle, chosen, chosen_providers, serving)
    tokenizer = Tokenizer(bundle.path_of(manifest.tokenizer.file), manifest.tokenizer)
    graph = SessionGraph(bundle, chosen, chosen_providers, serving)
    encoder = Encoder(graph, manifest.tokenizer, manifest.inputs, manifest.outputs)
    return TASKS[manifest.task](encoder, tokenizer, manifest.settings)
