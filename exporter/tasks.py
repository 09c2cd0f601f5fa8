"""Which task a model is for, and the transformers class that loads it, looked up in optimum's TasksManager."""

from __future__ import annotations

from typing import Any

from onnxpress.exporter.labels import CLASSIFIERS, has_entailment, label_names
from onnxpress.exporter.source import Source, read_json
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.tasks import TASKS

SUPPORTED = (*TASKS, "text-generation")
"""Tasks onnxpress exports."""

# Other names people use for them.
_ALIASES = {
    "sentence-similarity": "feature-extraction",
    "embedding": "feature-extraction",
    "sentiment-analysis": "text-classification",
    "zero-shot": "zero-shot-classification",
    "reranking": "text-ranking",
    "ner": "token-classification",
    "extractive-qa": "question-answering",
    "masked-lm": "fill-mask",
}
_SUFFIXES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForQuestionAnsweringSimple": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
}
# A hub's tag is followed from the first to the second: the body of a masked language model gives embeddings.
_BODIES = {"fill-mask": ("feature-extraction",), "text-generation": ("feature-extraction",)}


def resolve_task(asked: str | None, source: Source) -> str:
    """The task to export for: the one asked for, else what the model's files say.

    In order: sentence-transformers' own files, the architecture in config.json, and where that leaves a choice, the
    model card's `pipeline_tag` and the labels.

    Raises:
        InvalidInputError: the task asked for is not one onnxpress exports.
        UnsupportedModelError: the model is for a task onnxpress does not export, or for none that is known.
    """
    if asked is not None:
        task = _ALIASES.get(asked, asked)
        if task not in SUPPORTED:
            raise InvalidInputError(f"the task {asked!r} is not supported; give one of: {', '.join(SUPPORTED)}")
        return task
    if (source.folder / "modules.json").is_file() and not _is_cross_encoder(source):
        return "feature-extraction"
    task = _infer(source)
    tag = _ALIASES.get(source.pipeline_tag or "", source.pipeline_tag)
    if task == "text-classification":
        return _which_classifier(source, tag)
    if source.onnx is None and tag in _BODIES.get(task, ()):
        return str(tag)
    if task not in SUPPORTED:
        raise UnsupportedModelError(
            f"{source.name} is a {_architecture(source)} for the task {task!r}; onnxpress exports: "
            f"{', '.join(SUPPORTED)} (--task feature-extraction takes its hidden states)"
        )
    return task


def model_class(task: str, source: Source) -> Any:
    """The transformers auto class that loads the model for a task."""
    import transformers
    from optimum.exporters.tasks import TasksManager
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    model_type = source.config.get("model_type")
    if task == "feature-extraction" and model_type in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return transformers.AutoModelForTextEncoding  # of an encoder-decoder such as T5, the encoder alone
    head = "text-classification" if task in CLASSIFIERS else task
    return TasksManager.get_model_class_for_task(head, model_type=model_type)


def _which_classifier(source: Source, tag: str | None) -> str:
    """One of the tasks that a model for sequence classification may be for."""
    can_rank = len(label_names(source)) == 1
    if tag == "text-classification" or (tag == "text-ranking" and can_rank):
        return str(tag)
    if tag == "zero-shot-classification" and has_entailment(source):
        return str(tag)
    # transformers writes problem_type while a model is trained; cross-encoders are trained by sentence-transformers.
    is_regression = source.config.get("problem_type") == "regression"
    return "text-ranking" if can_rank and not is_regression else "text-classification"


def _is_cross_encoder(source: Source) -> bool:
    settings = source.folder / "config_sentence_transformers.json"
    found = read_json(settings) if settings.is_file() else {}
    return isinstance(found, dict) and found.get("model_type") == "CrossEncoder"


def _infer(source: Source) -> str:
    if source.onnx is not None:
        from onnxpress.exporter.onnx_file.reference import infer_task

        return infer_task(source)
    architecture = _architecture(source)
    for suffix, task in _SUFFIXES.items():  # the common ones, without the seconds that importing transformers takes
        if architecture.endswith(suffix):
            return task
    import transformers
    from optimum.exporters.tasks import TasksManager

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
