"""Families that are known not to export, or not for every task: each with the reason and the nearest thing that works.

A family that is not here is tried; what then fails is refused by `tracing.py` or by the gate.
"""

from __future__ import annotations

import dataclasses

from onnxpress.exporter.labels import CLASSIFIERS
from onnxpress.runtime.errors import UnsupportedModelError


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a family cannot be exported, and what to take in its place."""

    reason: str
    """Goes on after the model's name and "(<model type>) cannot be exported: "."""
    alternative: str
    """A clause that says what works."""
    tasks: tuple[str, ...] = ()
    """The tasks refused; all of them where empty."""


def refuse_unexportable(model_type: str, name: str, task: str) -> None:
    """Raise at once for a family that is known not to export for a task. Needs neither weights nor PyTorch.

    Args:
        model_type: as in config.json.
        name: of the model, for the sentence.
        task: the manifest's name of the task asked for.

    Raises:
        UnsupportedModelError: with the reason and the nearest thing that works.
    """
    refusal = REFUSALS.get(model_type)
    if refusal is not None and (not refusal.tasks or task in refusal.tasks):
        what = f" for {task}" if refusal.tasks else ""
        raise UnsupportedModelError(
            f"{name} ({model_type}) cannot be exported{what}: {refusal.reason}; {refusal.alternative}"
        )


def refuse_missing_head(model_type: str, name: str, task: str) -> None:
    """Raise for a task for which transformers has no class of the family; reads no weights.

    Raises:
        UnsupportedModelError: with the tasks for which it has one.
    """
    has = _tasks(model_type)
    if has and task not in has:
        raise UnsupportedModelError(
            f"{name} cannot be exported for {task}: transformers has no such head for {model_type}; it has heads for "
            f"{', '.join(has)}"
        )


def _tasks(model_type: str) -> tuple[str, ...]:
    """The tasks for which transformers has a class; none for a model type it does not know."""
    from transformers.models.auto import modeling_auto as auto

    classes = {
        "feature-extraction": {**auto.MODEL_MAPPING_NAMES, **auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES},
        **dict.fromkeys(CLASSIFIERS, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        "token-classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "question-answering": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        "fill-mask": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    return tuple(task for task, names in classes.items() if model_type in names)


_LONG = "Longformer and BigBird export and take long texts"
_ENDS = Refusal(
    "its classifier reads the decoder where a text's last end token stands, and transformers refuses batches whose "
    "rows differ in how many they have",
    "classifiers on DeBERTa-v2, RoBERTa or ModernBERT export",
    CLASSIFIERS,
)
_WRITES = Refusal(
    "it writes text with a decoder, and transformers gives its encoder no class of its own",
    "the encoders of T5, mT5 and UMT5 export for feature-extraction",
)
_SCANS = Refusal(
    "it walks through a text token by token, and its graph would take texts of the traced length only",
    "decoders with attention, such as Qwen3 or Mistral, export for feature-extraction",
)
_PAGES = Refusal(
    "it needs the places of words on a page, or pixels, beside the text",
    "LayoutLM and LiLT export for text alone",
)

REFUSALS: dict[str, Refusal] = {
    "bart": _ENDS,
    "bigbird_pegasus": Refusal("its encoder changes to another attention for long texts", _LONG),
    "blenderbot": _WRITES,
    "blenderbot-small": _WRITES,
    "bros": _PAGES,
    "canine": Refusal(
        "it reads characters, through a tokenizer in pure Python, and cuts them into windows by their number",
        "XLM-RoBERTa exports and reads as many languages",
    ),
    "falcon_mamba": _SCANS,
    "fsmt": _WRITES,
    "funnel": Refusal(
        "how often it halves a text depends on the length, and a graph would be wrong for short texts",
        "ELECTRA, trained in the same way, exports",
    ),
    "jamba": _SCANS,
    "layoutlmv2": _PAGES,
    "led": Refusal("its encoder cuts a text into chunks by values that a graph does not know", "Longformer exports"),
    "longformer": Refusal(
        "its reader takes the question's length from the input's values and refuses texts without three end tokens",
        "BigBird exports for question-answering on long texts",
        ("question-answering",),
    ),
    "longt5": _WRITES,
    "lxmert": _PAGES,
    "m2m_100": _WRITES,
    "mamba": _SCANS,
    "marian": _WRITES,
    "mbart": _WRITES,
    "mra": Refusal("its attention is a CUDA kernel, without which transformers computes zeros", _LONG),
    "mt5": _ENDS,
    "mvp": _ENDS,
    "nllb-moe": _WRITES,
    "nystromformer": Refusal("it takes texts of one length only, its segment_means_seq_len", _LONG),
    "pegasus": _WRITES,
    "pegasus_x": _WRITES,
    "perceiver": Refusal("it reads bytes, through a tokenizer in pure Python", "XLM-RoBERTa exports"),
    "plbart": _WRITES,
    "prophetnet": _WRITES,
    "qwen3_next": _SCANS,
    "recurrent_gemma": _SCANS,
    "reformer": Refusal("its attention sorts tokens into buckets by random numbers", _LONG),
    "rwkv": _SCANS,
    "switch_transformers": _WRITES,
    "t5": _ENDS,
    "tapas": Refusal(
        "it reads tables, through a tokenizer in pure Python", "readers of texts, such as RoBERTa, export"
    ),
    "udop": _PAGES,
    "umt5": _ENDS,
    "xlstm": _SCANS,
}
"""By model type, as in config.json. What is not here is tried."""
