"""Which task a model is for, and the transformers class that loads it, looked up in optimum's TasksManager."""

from __future__ import annotations

from typing import Any

from onnxpress.exporter.source import Source
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError

# Tasks onnxpress exports, and other names people use for them. A new task is added here and in runtime/model.py.
SUPPORTED = ("feature-extraction",)
_ALIASES = {"sentence-similarity": "feature-extraction", "embedding": "feature-extraction"}


def resolve_task(asked: str | None, source: Source) -> str:
    """The task to export for: the one asked for, else what the model's files say.

    Raises:
        InvalidInputError: the task asked for is not one onnxpress exports.
        UnsupportedModelError: the model is for a task onnxpress does not export, or for none that is known.
    """
    if asked is not None:
        task = _ALIASES.get(asked, asked)
        if task not in SUPPORTED:
            raise InvalidInputError(f"the task {asked!r} is not supported; give one of: {', '.join(SUPPORTED)}")
        return task
    if (source.folder / "modules.json").is_file():
        return "feature-extraction"
    task = _infer(source)
    if task not in SUPPORTED:
        raise UnsupportedModelError(
            f"{source.name} is a {_architecture(source)} for the task {task!r}; onnxpress exports: "
            f"{', '.join(SUPPORTED)} (--task feature-extraction takes its hidden states)"
        )
    return task


def model_class(task: str, source: Source) -> Any:
    """The transformers auto class that loads the model for a task."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task, model_type=source.config.get("model_type"))


def _infer(source: Source) -> str:
    import transformers
    from optimum.exporters.tasks import TasksManager

    architecture = _architecture(source)
    known = getattr(transformers, architecture, None)
    if known is None:
        raise UnsupportedModelError(
            f"the architecture {architecture!r} in {source.folder / 'config.json'} is not in transformers "
            f"{transformers.__version__}; give --task, and --trust-remote-code if it comes with code you trust"
        )
    try:
        return str(TasksManager.infer_task_from_model(known))
    except ValueError as error:
        raise UnsupportedModelError(
            f"no task is known for the architecture {architecture!r}; give --task, one of: {', '.join(SUPPORTED)}"
        ) from error


def _architecture(source: Source) -> str:
    listed = source.config.get("architectures")
    if not isinstance(listed, list) or not listed:
        raise UnsupportedModelError(
            f"{source.folder / 'config.json'} names no architecture, so the task is unknown; give --task, one of: "
            f"{', '.join(SUPPORTED)}"
        )
    return str(listed[0])
