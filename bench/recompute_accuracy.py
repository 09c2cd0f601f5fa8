"""The accuracy of a text classifier's bundle worked out anew, by numpy, onnxruntime and tokenizers, not by onnxpress.

`python bench/recompute_accuracy.py BUNDLE VARIANT FILE [alone]`: the file has a text and a label (its name or index) a
line, parted by a tab. Prints the accuracy in percent, to compare with that variant's in BUNDLE/report.json.

All activations of a batch share the scale of a dynamically quantized product, so an answer that hangs in the balance
depends on the texts beside it. Texts are therefore grouped as they are when a bundle serves (the longest first, about
512 tokens a batch, all threads busy); with `alone` each runs by itself.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers


def accuracy(bundle: Path, variant: str, file: Path, alone: bool = False) -> float:
    """Percent of the file's texts whose largest logit is that of their label."""
    manifest = json.loads((bundle / "onnxpress.json").read_text())
    threads = json.loads((bundle / "report.json").read_text())["machine"]["threads"]
    entry = next(entry for entry in manifest["variants"] if entry["name"] == variant)
    session = onnxruntime.InferenceSession(
        str(bundle / entry["model"]),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=entry["session"]["disabled_optimizers"],
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    encodings = [tokenizer.encode(text) for text, _ in rows]
    right = 0
    for batch in batches([len(encoding) for encoding in encodings], 1 if alone else math.inf, threads):
        feeds = padded(session, [encodings[index] for index in batch], manifest["tokenizer"]["pad_id"])
        found = session.run(["logits"], feeds)[0].argmax(axis=1)
        for index, label in zip(batch, found.tolist(), strict=True):
            right += rows[index][1] in (str(label), manifest["labels"]["names"][label])
    return 100 * right / len(rows)


def batches(lengths: list[int], most: float, threads: int) -> list[list[int]]:
    """Indices of texts that run together: the longest first, no more tokens with padding than makes all threads end at
    about the same time."""
    rounds = math.ceil(sum(lengths) / (512 * threads))
    tokens = max(64, math.ceil(sum(lengths) / (rounds * threads)))
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = found and len(found[-1]) < most and (len(found[-1]) + 1) * lengths[found[-1][0]] <= tokens
        found[-1].append(index) if fits else found.append([index])
    return found


def padded(session: onnxruntime.InferenceSession, encodings: list[Any], pad_id: int) -> dict[str, Any]:
    """The inputs of a batch, each int64 [texts, longest], the shorter texts filled up behind."""
    parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    feeds = {}
    for name in {node.name for node in session.get_inputs()}:
        fill = pad_id if name == "input_ids" else 0
        feeds[name] = np.full((len(encodings), max(map(len, encodings))), fill, np.int64)
        for row, encoding in enumerate(encodings):
            feeds[name][row, : len(encoding)] = getattr(encoding, parts[name])
    return feeds


if __name__ == "__main__":
    print(accuracy(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:] == ["alone"]))
