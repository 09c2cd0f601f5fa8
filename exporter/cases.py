"""The inputs every variant is verified on: real texts, and shapes and masks that break graphs in practice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxpress.exporter.loading import LoadedModel, reference_outputs
from onnxpress.runtime.verification import Case, IntArray

Feeds = dict[str, IntArray]

# Texts of different lengths and scripts for models that are exported without an evaluation file.
REAL_TEXTS = (
    "The parcel arrived two days late and the box was open.",
    "How do I change the address of my order?",
    "Thanks!",
    "我想知道我的订单什么时候能到。",
    "La réunion de jeudi est reportée à la semaine prochaine à cause de la grève des trains régionaux.",
    "In 2019 the plant produced 4,100 tonnes of cheese, 12.5 % more than the year before 🧀.",
    "She did not say that he stole the money.",
    (
        "A long sentence, written so that at least one of the texts in this batch is considerably longer than the "
        "others, goes on for a while about the weather, the price of coffee, and whether the last train has left."
    ),
)


def make_cases(model: LoadedModel) -> list[Case]:
    """Build the inputs and let PyTorch compute what is expected.

    Batch 1 and many, length 1 and the most the graph takes, left and right padding, a fully padded row, segment ids
    where the model has them, and none of the traced sizes (2 x 7).
    """
    cases = []
    for name, real, feeds in _inputs(model):
        cases.append(Case(name, feeds, reference_outputs(model, feeds), real))
    return cases


def _inputs(model: LoadedModel) -> list[tuple[str, bool, Feeds]]:
    rng = np.random.default_rng(20)
    longest = model.tokenizer_settings.max_length

    def ids(batch: int, length: int) -> IntArray:
        return rng.integers(0, model.vocabulary, (batch, length), dtype=np.int64)

    def random(lengths: Sequence[int], left: bool = False) -> Feeds:
        return _padded(model, [ids(1, length)[0] for length in lengths], left)

    texts = [np.array(_token_ids(model, text), np.int64) for text in REAL_TEXTS]
    inputs = [
        ("one real text", True, _padded(model, texts[:1], False)),
        (f"{len(texts)} real texts, right padding", True, _padded(model, texts, False)),
        (f"{len(texts)} real texts, left padding", True, _padded(model, texts, True)),
        ("batch 1, length 1", False, random([1])),
        ("batch 5, length 1", False, random([1] * 5)),
        ("batch 3, length 17", False, random([17] * 3)),
        ("batch 5, lengths 1 to 64, right padding", False, random([64, 1, 33, 8, 50])),
        ("batch 5, lengths 1 to 64, left padding", False, random([64, 1, 33, 8, 50], left=True)),
        ("batch 3 with a fully padded row", False, random([12, 0, 9])),
        (f"batch 2, length {longest} (the maximum)", False, random([longest, longest - 3])),
    ]
    if model.max_positions > longest:
        inputs.append(
            (
                f"batch 1, length {model.max_positions} (the positions' limit)",
                False,
                random([model.max_positions]),
            )
        )
    if "token_type_ids" in model.input_names:
        feeds = random([24, 11])
        feeds["token_type_ids"] = rng.integers(0, 2, feeds["input_ids"].shape, dtype=np.int64)
        inputs.append(("batch 2, two segments", False, feeds))
    if "pooling_mask" in model.input_names:
        feeds = random([24, 11])
        feeds["pooling_mask"][:, :4] = 0
        inputs.append(("batch 2, a prompt left out of pooling", False, feeds))
    return inputs


def _padded(model: LoadedModel, rows: Sequence[IntArray], left: bool) -> Feeds:
    width = max(1, *(len(row) for row in rows))
    feeds = {name: np.zeros((len(rows), width), np.int64) for name in model.input_names}
    feeds["input_ids"][:] = model.tokenizer_settings.pad_id
    for index, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        feeds["input_ids"][index, span] = row
        feeds["attention_mask"][index, span] = 1
    if "pooling_mask" in feeds:
        feeds["pooling_mask"] = feeds["attention_mask"].copy()
    return feeds


def _token_ids(model: LoadedModel, text: str) -> list[int]:
    encode: Callable[..., list[int]] = model.tokenizer.encode
    return encode(text, truncation=True, max_length=model.tokenizer_settings.max_length)
