"""Tiny models that have learned something: trained within seconds, on the CPU, from the texts they are given.

    model = train_classifier(folder, {"complaint": ["the parcel is late", "包裹还没到"], "praise": ["great", "很好"]})
    bundle = press(model)

They read Chinese by characters and English by words, in lower case. They know the words of their texts and pass over
others, so unseen sentences of the same words come out right, and nothing more should be asked of them.
"""

from __future__ import annotations

import functools
import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional

import onnxpress

BERT = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
POSITIONS = 128
"""Tokens that a model reads."""
_BATCH = 32
_REPLACED = 0.04  # of tokens, by others: what is said must not hang on one word, nor on a word that is not known
_SHARPNESS = 10.0  # of similarities, in the embedder's loss


def train_classifier(
    folder: Path,
    texts_by_label: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    multi_label: bool = False,
    positions: int = POSITIONS,
    steps: int = 120,
    layers: int = 1,
) -> Path:
    """Save a BertForSequenceClassification.

    Args:
        folder: where to.
        texts_by_label: of each label at least one; with `multi_label` a text may be under several.
        seed: of the weights, and of the order of the texts.
        multi_label: each label has a probability of its own.
        positions: tokens that it reads.
        steps: of 32 texts.
        layers: 1 knows labels by their words; 2 also by which words stand together.
    """
    labels = list(texts_by_label)
    # Batches are of neighbours here, so that little is padding.
    texts = sorted(dict.fromkeys(text for group in texts_by_label.values() for text in group), key=len)
    targets = torch.tensor([[float(text in set(texts_by_label[label])) for label in labels] for text in texts])
    tokenizer = make_tokenizer(texts, positions)
    config = _config(
        tokenizer,
        positions,
        num_hidden_layers=layers,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
    )
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(config)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        logits = model(**_inputs(tokenizer, [texts[index] for index in chosen])).logits
        wanted = targets[chosen]
        if multi_label:
            return functional.binary_cross_entropy_with_logits(logits, wanted)
        return functional.cross_entropy(logits, wanted.argmax(-1))

    def batch() -> torch.Tensor:
        near = 8 * _BATCH  # so that not always the same are together
        start = int(torch.randint(max(1, len(texts) - near + 1), ()))
        return start + torch.randperm(min(near, len(texts)))[:_BATCH]

    _train(model, lambda: loss(batch()), steps)
    return _save(model, tokenizer, folder)


def train_embedder(
    folder: Path,
    texts_by_topic: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    positions: int = POSITIONS,
    steps: int = 120,
) -> Path:
    """Save a sentence-transformers folder whose vectors (64 numbers of length 1, the mean over tokens) lie near each
    other for texts of a topic, in whichever language, and apart for others. Arguments as of `train_classifier`."""
    texts = [text for group in texts_by_topic.values() for text in group]
    topics = torch.tensor([index for index, group in enumerate(texts_by_topic.values()) for _ in group])
    tokenizer = make_tokenizer(texts, positions)
    torch.manual_seed(seed)
    model = transformers.BertModel(_config(tokenizer, positions), add_pooling_layer=False)

    def loss(chosen: torch.Tensor) -> torch.Tensor:
        inputs = _inputs(tokenizer, [texts[index] for index in chosen])
        mask = inputs["attention_mask"][..., None]
        vectors = functional.normalize((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)
        # Supervised contrastive loss (Khosla et al. 2020, eq. 2): each text against all others of the batch.
        itself = torch.eye(len(chosen), dtype=torch.bool)
        similarities = (vectors @ vectors.T * _SHARPNESS).masked_fill(itself, -1e4)
        same = (topics[chosen][:, None] == topics[chosen]) & ~itself
        logs = functional.log_softmax(similarities, -1)
        return -((logs * same).sum(-1) / same.sum(-1).clamp(min=1)).mean()

    _train(model, lambda: loss(torch.randperm(len(texts))[:_BATCH]), steps)
    _save(model, tokenizer, folder)
    listed = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(listed)
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": positions, "do_lower_case": False})
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


def train_reranker(
    folder: Path,
    texts_by_topic: Mapping[str, Sequence[str]],
    documents_by_topic: Mapping[str, Sequence[str]] | None = None,
    *,
    seed: int = 0,
    positions: int = POSITIONS,
    steps: int = 250,
    start: Path | None = None,
) -> Path:
    """Save a cross-encoder that gives a query and a document of the same topic a high score, in whichever languages,
    and others a low one.

    Args:
        folder: where to.
        texts_by_topic: queries, of each topic at least one.
        documents_by_topic: documents; None for the same texts. To queries of a topic that is not here, none is right.
        seed: of the weights, and of the order of the texts.
        positions: tokens that it reads.
        steps: of 32 pairs.
        start: a folder of `train_embedder`, of these texts and positions, whose tokens and weights it begins with: with
            many topics it learns faster, for tokens of a topic are alike already.
    """
    groups = [list(group) for group in texts_by_topic.values()]
    read = texts_by_topic if documents_by_topic is None else documents_by_topic
    documents = [list(read.get(topic, ())) for topic in texts_by_topic]
    there = torch.tensor([index for index, group in enumerate(documents) if group])
    if start is None:
        tokenizer = make_tokenizer([text for group in (*groups, *documents) for text in group], positions)
    else:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(start)
    torch.manual_seed(seed)
    config = _config(tokenizer, positions, id2label={0: "LABEL_0"})
    model = transformers.BertForSequenceClassification(config)
    if start is not None:
        model.bert.load_state_dict(safetensors.torch.load_file(start / "model.safetensors"), strict=False)
    # Where a word stands says little. What is not learned about far positions then does no harm.
    torch.nn.init.zeros_(model.bert.embeddings.position_embeddings.weight)
    # That topics are alike is hard to find for who does not know them yet, so it learns to name both, too.
    naming = torch.nn.Linear(model.config.hidden_size, 2 * len(groups))

    def loss() -> torch.Tensor:
        topics = torch.stack([torch.randint(len(groups), (_BATCH,)), there[torch.randint(len(there), (_BATCH,))]])
        same = (torch.arange(_BATCH) % 2 == 1) & torch.isin(topics[0], there)
        topics[1] = torch.where(same, topics[0], topics[1])
        relevant = (topics[0] == topics[1]).float()
        sides = [
            [random.choice(texts[topic]) for topic in side]
            for texts, side in zip((groups, documents), topics, strict=True)
        ]
        output = model(**_inputs(tokenizer, *sides, moved=False), output_hidden_states=True)
        named = naming(output.hidden_states[-1][:, 0]).view(-1, 2, len(groups))
        return functional.binary_cross_entropy_with_logits(output.logits[:, 0], relevant) + functional.cross_entropy(
            named.transpose(1, 2), topics.T
        )

    random.seed(seed)
    _train(torch.nn.ModuleList([model, naming]), loss, steps)
    return _save(model, tokenizer, folder)


@functools.cache
def press(model: Path) -> Path:
    """The bundle of a model's folder, beside it, with float32 alone; made once."""
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",))
    return onnxpress.export(model, model.with_name(f"{model.name}.bundle"), config).folder


def make_tokenizer(texts: Sequence[str], positions: int = POSITIONS) -> transformers.PreTrainedTokenizerFast:
    """Words and Chinese characters of the texts, and ASCII letters for other words; BERT's special tokens."""
    known = (part for text in texts for part in re.findall(r"[^\W\d_]+|\d|[^\w\s]", text.lower()))
    words = sorted({part for word in known for part in re.findall(r"[^\u3400-\u9fff]+|.", word)})
    letters = (*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase + string.digits))
    pieces = dict.fromkeys([*BERT.values(), *letters, *string.digits, *words])
    backend = tokenizers.Tokenizer(
        models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token=BERT["unk_token"])
    )
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=positions, **BERT)


def _config(tokenizer: transformers.PreTrainedTokenizerFast, positions: int, **changes: Any) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=changes.pop("num_hidden_layers", 1),
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        **changes,
    )


def _inputs(
    tokenizer: transformers.PreTrainedTokenizerFast, *texts: list[str], moved: bool = True
) -> dict[str, torch.Tensor]:
    """A batch in which some tokens are replaced by random ones, and which begins at a random position if `moved`."""
    inputs = dict(tokenizer(*texts, padding=True, truncation=True, return_tensors="pt"))
    ids = inputs["input_ids"]
    special = len(BERT)
    replaced = (torch.rand(ids.shape) < _REPLACED) & (ids >= special)
    inputs["input_ids"] = torch.where(replaced, torch.randint(1, len(tokenizer), ids.shape), ids)
    if not moved:
        return inputs
    places = torch.arange(ids.shape[1]) + int(torch.randint(tokenizer.model_max_length - ids.shape[1] + 1, ()))
    places[0] = 0  # the first token is always there
    inputs["position_ids"] = places.expand_as(ids)
    return inputs


def _train(model: torch.nn.Module, loss: Callable[[], torch.Tensor], steps: int) -> None:
    """Minimise the loss, of random batches. In one thread: for so little, others only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    model.eval()
    torch.set_num_threads(threads)


def _save(model: Any, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> Path:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
