"""Ways to spoil a tokenizer.json."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from bench.fuzzing import sealing, values

_SLOW_PATTERNS = (
    r"(a+)+$",
    r"(x|x)*y",
    r"((.*)*)*$",
    r"(\w+\s?)+!",
    r"(?<=a{1,99})b",
    "(" * 500 + ")" * 500,
    "[",
    r"(?R)",
)


def change_values(folder: Path, rng: random.Random, canary: Path) -> str:
    """One to three values."""
    path, document = _read(folder)
    said = [values.change(document, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    _write(folder, path, document)
    return "; ".join(said)


def scramble(folder: Path, rng: random.Random, canary: Path) -> str:
    """The bytes."""
    path = folder / "tokenizer.json"
    data, said = values.scramble(path.read_bytes(), rng)
    path.write_bytes(data)
    sealing.seal(folder)
    return said


def attack(folder: Path, rng: random.Random, canary: Path) -> str:
    """What the library reads and may stumble over."""
    path, document = _read(folder)
    kind = rng.choice(sorted(_ATTACKS))
    _ATTACKS[kind](document, rng)
    _write(folder, path, document)
    return kind


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _slow_split(document: dict[str, Any], rng: random.Random) -> None:
    document["pre_tokenizer"] = _split(rng.choice(_SLOW_PATTERNS))


def _slow_normalizer(document: dict[str, Any], rng: random.Random) -> None:
    pattern = rng.choice(_SLOW_PATTERNS)
    document["normalizer"] = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "a"}


def _empty_pattern(document: dict[str, Any], rng: random.Random) -> None:
    document["normalizer"] = {"type": "Replace", "pattern": {"String": ""}, "content": "a"}
    document["pre_tokenizer"] = _split("")


def _nested(document: dict[str, Any], rng: random.Random) -> None:
    inner: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(rng.choice((20, 60, 400))):
        inner = {"type": "Sequence", "normalizers": [inner]}
    document["normalizer"] = inner


def _charsmap(document: dict[str, Any], rng: random.Random) -> None:
    junk = rng.choice(("", "AAAA", "////", "/////w==", "AAAAgP////8=", "x" * 64))
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": junk}


def _unigram(document: dict[str, Any], rng: random.Random) -> None:
    score = rng.choice((0.0, -1e308, 1e308, -1.0))
    document["model"] = {
        "type": "Unigram",
        "unk_id": rng.choice((None, 0, 5, 10**6)),
        "vocab": [["<unk>", score], ["the", score], ["", score], ["the", score]][: rng.randrange(5)],
        "byte_fallback": rng.random() < 0.5,
    }


def _sparse_ids(document: dict[str, Any], rng: random.Random) -> None:
    vocabulary = document["model"].get("vocab")
    if isinstance(vocabulary, dict):
        for key in rng.sample(sorted(vocabulary), min(5, len(vocabulary))):
            vocabulary[key] = rng.choice((2**32 - 1, 2**31, 10**6, 0))


def _template(document: dict[str, Any], rng: random.Random) -> None:
    piece = {"SpecialToken": {"id": "[X]", "type_id": rng.choice((0, 1, 2**31))}}
    count = rng.choice((0, 1, 30, 100_000))
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece] * count + [{"Sequence": {"id": rng.choice("AB"), "type_id": 0}}] * rng.choice((0, 1, 2)),
        "pair": rng.choice(([], [piece], [{"Sequence": {"id": "B", "type_id": 9}}])),
        "special_tokens": {"[X]": {"id": "[X]", "ids": rng.choice(([1], [], [1] * 9, [2**31])), "tokens": ["[X]"]}},
    }


def _post_processor(document: dict[str, Any], rng: random.Random) -> None:
    kind = rng.choice(("BertProcessing", "RobertaProcessing"))
    document["post_processor"] = {
        "type": kind, "sep": ["x", 2**32 - 1], "cls": ["", 0], "trim_offsets": True, "add_prefix_space": True,
    }  # fmt: skip


def _merges(document: dict[str, Any], rng: random.Random) -> None:
    document["model"] = {
        "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": rng.choice((0, 2, 2**32 - 1))},
        "unk_token": rng.choice((None, "zz", "a")),
        "merges": rng.choice(([["a", "b"]], [["a", "c"]], ["a b"], ["a"], [["", ""]])), "fuse_unk": True,
        "dropout": rng.choice((None, 0.5, 2.0, -1.0)), "byte_fallback": rng.random() < 0.5,
        "continuing_subword_prefix": rng.choice((None, "", "é" * 9)), "end_of_word_suffix": rng.choice((None, "</w>")),
    }  # fmt: skip


def _wordpiece(document: dict[str, Any], rng: random.Random) -> None:
    document["model"] = {
        "type": rng.choice(("WordPiece", "WordLevel")), "unk_token": rng.choice(("[UNK]", "", "nope")),
        "vocab": rng.choice(({}, {"a": 0}, {"": 0, "a": 0})), "continuing_subword_prefix": rng.choice(("", "##")),
        "max_input_chars_per_word": rng.choice((0, 1, 2**63)),
    }  # fmt: skip


def _added(document: dict[str, Any], rng: random.Random) -> None:
    flags = {name: rng.random() < 0.5 for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    count = rng.choice((1, 5, 20_000))
    document["added_tokens"] = [
        {
            "id": rng.choice((index, 0, 2**32 - 1)),
            "content": rng.choice(("", " ", "a" * (index % 50), f"t{index}")),
            **flags,
        }
        for index in range(count)
    ]


def _truncation(document: dict[str, Any], rng: random.Random) -> None:
    document["truncation"] = {
        "direction": rng.choice(("Left", "Right")), "max_length": rng.choice((0, 1, 2**63)),
        "strategy": rng.choice(("LongestFirst", "OnlyFirst", "OnlySecond")), "stride": rng.choice((0, 5, 2**63)),
    }  # fmt: skip
    document["padding"] = {
        "strategy": rng.choice(("BatchLongest", {"Fixed": 2**40})), "direction": "Left", "pad_id": 0,
        "pad_to_multiple_of": rng.choice((None, 0, 2**40)), "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip


def _decoder(document: dict[str, Any], rng: random.Random) -> None:
    document["decoder"] = rng.choice(
        (
            {"type": "Strip", "content": "a", "start": 2**40, "stop": 5},
            {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
            {"type": "WordPiece", "prefix": "", "cleanup": True},
            {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
            {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}] * 50},
            {"type": "Metaspace", "replacement": "é", "prepend_scheme": "always", "split": True},
            None,
        )
    )


_ATTACKS = {
    "slow split": _slow_split,
    "slow normalizer": _slow_normalizer,
    "empty pattern": _empty_pattern,
    "nested normalizers": _nested,
    "charsmap": _charsmap,
    "unigram": _unigram,
    "sparse ids": _sparse_ids,
    "template": _template,
    "post-processor": _post_processor,
    "merges": _merges,
    "wordpiece": _wordpiece,
    "added tokens": _added,
    "truncation and padding": _truncation,
    "decoder": _decoder,
}


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "tokenizer.json"
    return path, json.loads(path.read_text())


def _write(folder: Path, path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))
    sealing.seal(folder)
