"""A bundle for each task, written without tracing anything, so that all of them take a second: what tests of the server
serve. Weights are random; every output depends on every token of its text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from onnxpress.runtime.manifest import (
    SCHEMA_VERSION,
    EmbeddingSettings,
    FileRecord,
    LabelSettings,
    Manifest,
    MaskSettings,
    SessionSettings,
    Source,
    Tensor,
    TokenizerSettings,
    Variant,
    render_manifest,
)
from onnxpress.runtime.paths import MANIFEST_NAME, sha256_of
from tests.tiny_generator import make_bundle as make_generator

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("the", "cat", "dog", "order", "was", "not", "sent", "where", "is", "my", "ada", "london", "paris", "fine"),
    *("film", "never", "again", "lamp", "订", "单", "寄", "出"),
)
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *".,!?'-"]
VOCABULARY = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS[:36])]
HIDDEN = 16
MAX_LENGTH = 64
LABELS = {
    "text-classification": ("negative", "neutral", "positive"),
    "zero-shot-classification": ("entailment", "neutral", "contradiction"),
    "text-ranking": ("relevance",),
    "token-classification": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}
NAMES = {
    "feature-extraction": "embedder",
    "text-ranking": "reranker",
    "text-classification": "classifier",
    "zero-shot-classification": "nli",
    "token-classification": "tagger",
    "question-answering": "reader",
    "fill-mask": "filler",
    "text-generation": "writer",
}
"""By task: the name of its bundle's folder, and so of the model."""


def make_bundles(folder: Path) -> dict[str, Path]:
    """Write a bundle for each task; the folders by name of the model."""
    return {name: make_bundle(folder / name, task) for task, name in NAMES.items()}


def make_bundle(
    folder: Path, task: str, *, seed: int = 0, scale: float = 1.0, embedding: dict[str, Any] | None = None
) -> Path:
    """Write a bundle and return its folder.

    Args:
        folder: is made.
        task: what the bundle is for.
        seed: of the weights.
        scale: of the logits; infinite makes them no numbers.
        embedding: changes of the settings of an embedder.
    """
    folder.mkdir(parents=True)
    if task == "text-generation":
        manifest = make_generator(folder).manifest
    else:
        graph = _graph(task, seed, scale)
        onnx.save(graph, folder / "model.onnx")
        make_tokenizer().save(str(folder / "tokenizer.json"))
        manifest = _manifest(task, graph, embedding or {})
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    files = tuple(FileRecord(path.name, path.stat().st_size, sha256_of(path)) for path in paths)
    (folder / MANIFEST_NAME).write_text(render_manifest(dataclasses.replace(manifest, files=files)), encoding="utf-8")
    return folder


def make_tokenizer() -> tokenizers.Tokenizer:
    """As BERT's: lower case, a few words, and all letters."""
    ids = {piece: index for index, piece in enumerate(VOCABULARY)}
    made = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.add_special_tokens(list(SPECIAL))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return made


def _graph(task: str, seed: int, scale: float) -> onnx.ModelProto:
    """hidden = tanh((word + segment + mean of the words) W), and the task's head over it."""
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def normal(name: str, *shape: int) -> str:
        return weight(name, random.normal(0, 0.7, shape).astype(np.float32))

    def add(kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    last, second = weight("last", np.array([-1], np.int64)), weight("second", np.array([1], np.int64))
    words = add("Gather", "words", normal("table", len(VOCABULARY), HIDDEN), "input_ids")
    segments = add("Gather", "segments", normal("segment_table", 2, HIDDEN), "token_type_ids")
    mask = add("Unsqueeze", "mask", add("Cast", "mask_float", "attention_mask", to=TensorProto.FLOAT), last)
    count = add("ReduceSum", "count", mask, second)
    both = add("Add", "both", words, segments)
    total = add("ReduceSum", "total", add("Mul", "masked", both, mask), second)
    mixed = add("Add", "mixed", both, add("Div", "mean", total, count))
    hidden = add("Tanh", "hidden", add("MatMul", "turned", mixed, normal("W", HIDDEN, HIDDEN)))
    inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("batch", "sequence"))
    outputs: dict[str, tuple[Any, ...]]
    factor = weight("factor", np.float32(scale))
    if task == "token-classification":
        size = len(LABELS[task])
        add("Mul", "logits", add("MatMul", "raw", hidden, normal("head", HIDDEN, size)), factor)
        outputs = {"logits": ("batch", "sequence", size)}
    elif task == "question-answering":
        for name in ("start_logits", "end_logits"):
            add("Squeeze", name, add("MatMul", f"{name}_raw", hidden, normal(f"{name}_head", HIDDEN, 1)), last)
        outputs = dict.fromkeys(("start_logits", "end_logits"), ("batch", "sequence"))
    elif task == "fill-mask":
        inputs["mask_positions"] = ("batch", "masks")
        places = add("Unsqueeze", "places", "mask_positions", last)
        gaps = add("GatherND", "gaps", hidden, places, batch_dims=1)
        add("MatMul", "logits", gaps, normal("head", HIDDEN, len(VOCABULARY)))
        outputs = {"logits": ("batch", "masks", len(VOCABULARY))}
    else:
        pooled = add("Div", "pooled", add("ReduceSum", "sum", add("Mul", "kept", hidden, mask), second, keepdims=0),
                     add("Squeeze", "count_flat", count, last))  # fmt: skip
        size = HIDDEN if task == "feature-extraction" else len(LABELS[task])
        name = "sentence_embedding" if task == "feature-extraction" else "logits"
        add("Mul", name, add("MatMul", "raw", pooled, normal("head", HIDDEN, size)), factor)
        outputs = {name: ("batch", size)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _tensors(values: Any) -> tuple[Tensor, ...]:
    made = []
    for value in values:
        tensor = value.type.tensor_type
        kind = "int64" if tensor.elem_type == TensorProto.INT64 else "float"
        made.append(Tensor(value.name, kind, tuple(axis.dim_param or str(axis.dim_value) for axis in tensor.shape.dim)))
    return tuple(made)


def _manifest(task: str, graph: onnx.ModelProto, embedding: dict[str, Any]) -> Manifest:
    vectors = EmbeddingSettings(HIDDEN, ("Transformer", "Pooling (mean)"), False, "cosine", True, {}, None)
    names = LABELS.get(task)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created="2026-11-24T00:00:00Z",
        source=Source("tiny", "/tiny", None, ""),
        task=task,
        architecture="BertModel",
        tokenizer=TokenizerSettings("tokenizer.json", MAX_LENGTH, 0),
        embedding=dataclasses.replace(vectors, **embedding) if task == "feature-extraction" else None,
        labels=names and LabelSettings(names, "sigmoid" if task == "text-ranking" else "softmax"),
        mask=MaskSettings("[MASK]", SPECIAL.index("[MASK]")) if task == "fill-mask" else None,
        generation=None,
        inputs=_tensors(graph.graph.input),
        outputs=_tensors(graph.graph.output),
        files=(),
        variants=(
            Variant(
                "fp32", "fp32", "cpu", "passed", "model.onnx", ("model.onnx",), 1, SessionSettings(), "max_abs", 1e-4
            ),
        ),
        default_variant="fp32",
        default_reason="the only one",
        machine={},
        versions={},
    )
