"""What a classifier's logits stand for, and how scores are made of them, from config.json alone."""

from __future__ import annotations

from typing import Any

from onnxpress.exporter.source import Source
from onnxpress.runtime.errors import UnsupportedModelError
from onnxpress.runtime.manifest import LabelSettings
from onnxpress.runtime.tasks.scores import ScoreFunction

CLASSIFIERS = ("text-classification", "zero-shot-classification", "text-ranking")
"""Tasks of one head: which of them it is, its architecture does not say."""
LABELLED = (*CLASSIFIERS, "token-classification")
"""Tasks whose models have labels."""


def label_settings(task: str, source: Source) -> LabelSettings | None:
    """Labels of a model for a task, None where the task has none.

    Raises:
        UnsupportedModelError: the labels do not fit the task.
    """
    if task not in LABELLED:
        return None
    names = label_names(source)
    if len(set(names)) < len(names):
        raise UnsupportedModelError(
            f"{source.name} has two labels of the same name ({', '.join(names[:10])}); give them names in config.json"
        )
    if task == "text-ranking":
        if len(names) != 1:
            raise UnsupportedModelError(
                f"{source.name} has {len(names)} labels ({', '.join(names[:5])}); a model for text-ranking has one "
                "number: give --task text-classification"
            )
        return LabelSettings(names, _ranking_function(source))
    if task == "zero-shot-classification" and not has_entailment(source):
        raise UnsupportedModelError(
            f"{source.name} has no label 'entailment' ({', '.join(names[:5])}), which zero-shot-classification needs: "
            "give --task text-classification"
        )
    return LabelSettings(names, "softmax" if task == "token-classification" else _function(source, len(names)))


def label_names(source: Source) -> tuple[str, ...]:
    """Names of the labels in the order of the logits, as transformers makes them of config.json.

    Raises:
        UnsupportedModelError: they are not numbered.
    """
    named = source.config.get("id2label")
    try:
        if isinstance(named, dict) and named:
            return tuple(str(named[key]) for key in sorted(named, key=int))
        return tuple(f"LABEL_{index}" for index in range(int(source.config.get("num_labels") or 2)))
    except (ValueError, TypeError) as error:
        raise UnsupportedModelError(
            f"{source.folder / 'config.json'} has labels that are not numbered from 0 (id2label: {named!r})"
        ) from error


def has_entailment(source: Source) -> bool:
    """Whether the model judges if one text follows from another.

    Raises:
        UnsupportedModelError: as of `label_names`.
    """
    return any(name.lower().startswith("entail") for name in label_names(source))


def _function(source: Source, count: int) -> ScoreFunction:
    """What transformers' text classification pipeline makes scores with."""
    kind = source.config.get("problem_type")
    if kind == "regression":
        return "identity"
    return "sigmoid" if kind == "multi_label_classification" or count == 1 else "softmax"


def _ranking_function(source: Source) -> ScoreFunction:
    """What sentence-transformers' CrossEncoder makes scores with: what its configuration says, else a sigmoid."""
    settings: Any = source.config.get("sentence_transformers")
    named = settings.get("activation_fn") if isinstance(settings, dict) else None
    path = str(named or source.config.get("sbert_ce_default_activation_function") or "torch.nn.Sigmoid")
    functions: dict[str, ScoreFunction] = {"Sigmoid": "sigmoid", "Identity": "identity"}
    function = functions.get(path.rsplit(".", 1)[-1])
    if function is None:
        raise UnsupportedModelError(
            f"{source.name} makes scores with {path}; torch.nn.Sigmoid and torch.nn.Identity can be exported"
        )
    return function
