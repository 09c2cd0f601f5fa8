"""Makes question_answering.json: what the question-answering pipeline of transformers 4.57 says on awkward inputs.

transformers 5 has no such pipeline, so this runs in an environment of its own, made once:

    pip install 'torch==2.13.0' 'transformers<4.58'
    python tests/data/make_question_answering.py

The file was made with transformers 4.57.6, tokenizers 0.22.2, torch 2.13.0 and numpy 2.4.6. tests/test_answering.py
takes models, tokenizers and inputs from here; weights are numbers of numpy's generator, the same with every version of
transformers, so that none need to be stored.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

GOLDEN = Path(__file__).with_name("question_answering.json")
POSITIONS = 512
WORDS = ("the", "order", "was", "not", "sent", "cat", "dog", "where", "is", "my", "parcel", "in", "berlin", "and", "to")
LETTERS = (*string.ascii_lowercase, *string.digits, *".,?!-'", *"我的订单在哪里猫柏林，。？", "😀", "👩")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A tokenizer and a random model for it."""

    tokenizer: str
    seed: int
    padding_side: str = "right"
    flat: bool = False
    """All logits are equal, so all spans are tied."""


KINDS = {
    "bert": Kind("wordpiece", 32),
    "roberta": Kind("byte-level", 23),
    "context first": Kind("wordpiece", 15, padding_side="left"),
    "flat": Kind("wordpiece", 4, flat=True),
}

QUESTION = "Where is my parcel?"
TEXTS = {
    "two sentences": (QUESTION, "The order was not sent. My parcel is in Berlin, and the cat is not."),
    "a word": ("what", "berlin"),
    "words of many pieces": (QUESTION, "Unbelievably, Wolfgang's zeppelin-parcel landed in Kreuzberg-Friedrichshain!"),
    "twice in another case": ("Which CAT?", "the cat, The Cat, THE CAT and the dog; the cat's dog. Cat!"),
    "white space of every kind": (QUESTION, "  my\tparcel \u00a0was\r\nnot\u3000sent \u2003 in\u2028berlin  "),
    "Chinese": ("我的订单在哪里？", "我的订单在柏林，猫在这里。𠮷野家 ok"),
    "emoji": ("where is 😀?", "the cat 😀🎉 is 👩‍👩‍👧‍👦 my 🐶 dog🧑🏽‍🚀s, 1️⃣ parcel 🏳️‍🌈"),
    "combining marks": (
        "Où?",
        "Cafe\u0301 n\u0303o A\u030angstro\u0308m Z\u0351\u036b\u0343al\u0353go; café in Berlin, ﬁne ½",
    ),
    "special tokens": ("is [MASK] <mask> sent?", "the [MASK] cat [SEP] is<mask>not</s>my [CLS] dog<s> sent"),
    "a long question": (
        " ".join(WORDS[i % 13] for i in range(30)) + "?",
        "My order was sent in two parcels to Berlin.",
    ),
    "many words": (QUESTION, " ".join(WORDS[(7 * i * i + 3 * i) % 13 + i % 3] for i in range(150)) + "."),
}
LONG = " ".join(WORDS[(5 * i * i + i) % 13 + i % 2] for i in range(700)) + "."

OPTIONS: dict[str, dict[str, Any]] = {
    "best": {},
    "best of tokens": {"align_to_words": False},
    "four": {"top_k": 4},
    "four of tokens": {"top_k": 4, "align_to_words": False},
    "or none": {"top_k": 3, "allow_no_answer": True},
    "short": {"top_k": 3, "max_answer_tokens": 2},
}
WINDOWS: dict[str, tuple[int, dict[str, Any]]] = {
    "windows": (14, {"top_k": 4, "stride": 5, "allow_no_answer": True}),
    "windows of tokens": (30, {"stride": 29, "align_to_words": False}),
    "windows side by side": (9, {"top_k": 4, "stride": 0, "align_to_words": False}),
}
"""The room for tokens of the context in a window, and the other options."""
FULL_LENGTH: dict[str, dict[str, Any]] = {
    "default windows": {"top_k": 4, "allow_no_answer": True},
    "model's windows": {"top_k": 4, "window_tokens": POSITIONS, "max_answer_tokens": 40},
    "a wide stride": {"top_k": 2, "stride": 300, "align_to_words": False},
}
_NAMES_IN_PIPELINE = {
    "max_answer_tokens": "max_answer_len",
    "stride": "doc_stride",
    "window_tokens": "max_seq_len",
    "allow_no_answer": "handle_impossible_answer",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; `options` are named as `Reader.answer` names them."""

    kind: str
    name: str
    question: str
    context: str
    options: dict[str, Any]


def cases() -> Iterator[Case]:
    """All calls."""
    for kind in KINDS:
        if kind == "flat":  # of more than one of tied spans the pipeline's order is numpy's
            for name, (question, context) in TEXTS.items():
                yield Case(kind, f"{name}, tied", question, context, OPTIONS["best of tokens"])
            continue
        for name, (question, context) in TEXTS.items():
            for which, options in OPTIONS.items():
                yield Case(kind, f"{name}, {which}", question, context, options)
            beside = len(make_tokenizer(KINDS[kind]).encode(question, ""))
            for which, (room, options) in WINDOWS.items():
                yield Case(kind, f"{name}, {which}", question, context, {"window_tokens": beside + room, **options})
        for which, options in FULL_LENGTH.items():
            yield Case(kind, f"full length, {which}", QUESTION, LONG, options)


@functools.cache
def make_tokenizer(kind: Kind) -> tokenizers.Tokenizer:
    """BERT's tokenizer or RoBERTa's, with a vocabulary of letters and a few words."""
    if kind.tokenizer == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokens = (*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS)
        made = tokenizers.Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        made.add_special_tokens(special)
        return made
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "s"), ("i", "n"), ("Ġ", "is"), ("c", "a"), ("ð", "Ł")]
    # A space alone is a token without characters, which the pipeline takes for an answer and `spans.py` does not.
    pairs += [("Ġ", letter) for letter in alphabet if letter != "Ġ"]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = (*special, *alphabet, *(left + right for left, right in pairs))
    made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    made.add_special_tokens(special)
    return made


def make_model(kind: Kind) -> torch.nn.Module:
    """A random model: normal numbers with a standard deviation of 0.3, around 1 for the scales of layer norms."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = make_tokenizer(kind).get_vocab_size()
    if kind.tokenizer == "wordpiece":
        config = transformers.BertConfig(vocab_size=vocabulary, max_position_embeddings=POSITIONS, **sizes)
        model = transformers.BertForQuestionAnswering(config)
    else:  # RoBERTa counts positions from the padding's id + 1
        config = transformers.RobertaConfig(
            vocab_size=vocabulary, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, pad_token_id=1, **sizes
        )
        model = transformers.RobertaForQuestionAnswering(config)
    generator = np.random.default_rng(kind.seed)
    for name, parameter in sorted(model.named_parameters()):
        values = generator.normal(0, 0.3, tuple(parameter.shape)) + name.endswith("LayerNorm.weight")
        if kind.flat and name == "qa_outputs.weight":
            values *= 0
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return model.eval()


def make_pipeline(kind: Kind) -> Any:
    """The pipeline of transformers 4.57."""
    names = ("[PAD]", "[CLS]", "[SEP]") if kind.tokenizer == "wordpiece" else ("<pad>", "<s>", "</s>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(kind),
        **dict(zip(("pad_token", "cls_token", "sep_token"), names, strict=True)),
        model_max_length=POSITIONS,
        padding_side=kind.padding_side,
        model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * (kind.tokenizer == "wordpiece"),
    )

    class Pipeline(transformers.QuestionAnsweringPipeline):
        def preprocess(self, *arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
            """Mask the question of models that read the context first, too: `tok != 1 if question_first else 0`
            in the original masks nothing of theirs."""
            for window in super().preprocess(*arguments, **options):
                if kind.padding_side == "left":
                    window["p_mask"] = [part != 0 for part in window["encoding"].sequence_ids]
                    window["p_mask"][0] = False
                yield window

    return Pipeline(model=make_model(kind), tokenizer=tokenizer, device="cpu")


def main() -> None:
    """Write the file."""
    assert transformers.__version__.startswith("4.57."), transformers.__version__
    torch.set_num_threads(1)
    pipelines = {name: make_pipeline(kind) for name, kind in KINDS.items()}
    golden: dict[str, dict[str, list[tuple[str, int, int, float]]]] = {name: {} for name in KINDS}
    for case in cases():
        options = {_NAMES_IN_PIPELINE.get(name, name): value for name, value in case.options.items()}
        found = pipelines[case.kind](question=case.question, context=case.context, **options)
        # Where it runs out of spans, the pipeline gives some that end before they start, with a score of 0.
        answers = [answer for answer in (found if isinstance(found, list) else [found]) if answer["score"] > 0]
        scores = [answer["score"] for answer in answers]
        # Otherwise the order could depend on the last bits.
        assert all(high > low * 1.00001 for high, low in itertools.pairwise(scores)), (case, answers)
        golden[case.kind][case.name] = [
            (answer["answer"], answer["start"], answer["end"], float(f"{answer['score']:.7g}")) for answer in answers
        ]
    lines = [
        f" {json.dumps(kind)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows, ensure_ascii=False)}" for name, rows in of_kind.items())
        + "\n }"
        for kind, of_kind in golden.items()
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
