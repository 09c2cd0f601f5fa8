"""Text classifiers that are hard to quantize: a few channels of the attention's values are enlarged and the weights
that read them made that much smaller, which changes nothing in float32.

The classifiers are the trained MiniLM of the shared data where that is beside the project, and else a tiny BERT trained
on the fly to tell whether more letters of a text are of the first or of the second half of the alphabet.
"""

from __future__ import annotations

import dataclasses
import os
import random
import string
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.models import bert_config, make_tokenizer

SHARED = Path(os.environ.get("ONNXPRESS_TEST_DATA", Path(__file__).parents[2] / "shared"))
MINILM = SHARED / "models" / "minilm-sst2"
FACTOR = 100.0
CHANNELS = 12
"""Enlarged in each layer."""
_TINY_TEXTS = 600
_LABELS = ("negative", "positive")
_HALVES = (string.ascii_lowercase[:13], string.ascii_lowercase[13:])


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A folder of transformers, and labelled texts that it was not trained on."""

    folder: Path
    evaluation: Path
    """A text, a tab and a label a line."""


def minilm() -> Classifier | None:
    """MiniLM fine-tuned on SST-2; None where the shared data is not there."""
    if not MINILM.is_dir():
        return None
    return Classifier(MINILM, SHARED / "data" / "sst2" / "dev.tsv")


def train_tiny(folder: Path, *, steps: int = 200, seed: int = 0) -> Classifier:
    """Train a BERT of two layers and 64 features for some seconds on letters; it gets nearly all texts right.

    Args:
        folder: where to write the model and `letters.tsv`.
        steps: of training, 64 texts each.
        seed: of weights and texts.
    """
    torch.manual_seed(seed)
    source = random.Random(seed)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    config = bert_config(
        hidden_size=64, intermediate_size=128, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    config.id2label, config.label2id = dict(enumerate(_LABELS)), {name: index for index, name in enumerate(_LABELS)}
    config.initializer_range = 0.1
    model: Any = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        texts, labels = _letters(source, 64)
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        loss = model(**inputs, labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts, labels = _letters(source, _TINY_TEXTS)
    evaluation = folder / "letters.tsv"
    evaluation.write_text("".join(f"{text}\t{_LABELS[label]}\n" for text, label in zip(texts, labels, strict=True)))
    return Classifier(folder, evaluation)


def _letters(source: random.Random, count: int) -> tuple[list[str], list[int]]:
    """Texts of letters, and 1 where more of them are of the second half of the alphabet: one or three more, as near to a
    tie as it gets."""
    texts, labels = [], []
    for _ in range(count):
        label, fewer, ahead = source.randint(0, 1), source.randint(1, 22), source.choice((1, 3))
        counts = (fewer + ahead, fewer) if label == 0 else (fewer, fewer + ahead)
        letters = [letter for half, k in zip(_HALVES, counts, strict=True) for letter in source.choices(half, k=k)]
        source.shuffle(letters)
        texts.append(" ".join(letters))
        labels.append(label)
    return texts, labels


def make_hard(plain: Classifier, folder: Path, *, factor: float = FACTOR, channels: int = CHANNELS) -> Classifier:
    """Save a copy of a BERT classifier that computes the same in float32 and loses much when it is quantized.

    In every layer, the `channels` outputs of the projection to values that matter most become `factor` times as large,
    and the inputs of the attention's output projection that they end up in `factor` times as small.

    Args:
        plain: the classifier to copy.
        folder: where to write.
        factor: how many times the channels are enlarged.
        channels: how many in each layer.

    Raises:
        AssertionError: the logits have changed by more than 1e-4 of their size.
    """
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.BertForSequenceClassification.from_pretrained(plain.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain.folder)
    ids = torch.arange(5, 5 + 4 * 12).reshape(4, 12)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        for layer in model.bert.encoder.layer:
            value, output = layer.attention.self.value, layer.attention.output.dense
            chosen = (value.weight.norm(dim=1) * output.weight.norm(dim=0)).topk(channels).indices
            value.weight[chosen] *= factor
            value.bias[chosen] *= factor
            output.weight[:, chosen] /= factor
        found = model(input_ids=ids).logits
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Classifier(folder, plain.evaluation)
