"""Labels a bundle gives to labelled texts, against those of transformers: one figure that nothing of ours computes.

`python -m bench.labels MODEL BUNDLE --data FILE.tsv [--require]`: each row is a text, a tab and the index of its label.
The reference is the model's own class in PyTorch float32, fed by transformers' tokenizer, 32 texts at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import common

MOST_INT8_LOSS = 0.7
"""Points of accuracy that INT8 may lose against PyTorch."""
_BATCH = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; the exit status says whether the limits are met if they are required."""
    parser = argparse.ArgumentParser(prog="bench.labels", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", metavar="MODEL", type=common.existing_folder)
    parser.add_argument("bundle", metavar="BUNDLE", type=common.existing_folder)
    parser.add_argument("--data", required=True, metavar="FILE", type=Path, help="text, tab, index of the label")
    parser.add_argument("--require", action="store_true", help="exit with status 1 if a limit is not met")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except common.BadInputError as error:
        print(f"bench.labels: {error}", file=sys.stderr)
        return common.BAD_INPUT


def run(options: argparse.Namespace) -> int:
    """Every variant on every text, and the result."""
    import onnxpress
    from onnxpress.runtime.bundle import open_bundle

    rows = _rows(options.data)
    facts = common.record()
    common.show_record(facts)
    texts, gold = [text for text, _ in rows], [label for _, label in rows]
    expected = labels_in_pytorch(options.model, texts)
    correct = {"PyTorch": _accuracy(expected, gold)}
    changed = {}
    for variant in open_bundle(options.bundle).manifest.variants:
        model = onnxpress.load(options.bundle, variant=variant.name)
        names = list(model.settings.labels.names)
        found = [names.index(entry.label) for entry in model.classify(texts)]
        correct[variant.name] = _accuracy(found, gold)
        changed[variant.name] = sum(one != other for one, other in zip(found, expected, strict=True))
    print(f"\n{len(rows)} texts    accuracy, %    labels other than PyTorch's")
    for name, value in correct.items():
        print(f"  {name:<12} {value:8.2f}       {changed.get(name, 0)}")
    limits = [
        common.Limit("fp32 labels other than PyTorch's", changed.get("fp32"), 0),
        common.Limit(
            "points that int8 loses",
            correct["PyTorch"] - correct["int8"] if "int8" in correct else None,
            MOST_INT8_LOSS,
        ),
    ]
    figures = {"benchmark": "labels", "accuracy_points": correct, "changed_labels": changed, "machine": facts}
    return common.finish(figures, limits, options.require)


def labels_in_pytorch(folder: Path, texts: Sequence[str]) -> list[int]:
    """Index of the largest logit for each text."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    labels: list[int] = []
    with torch.inference_mode():
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            labels += model(**tokens).logits.argmax(dim=-1).tolist()
    return labels


def _accuracy(found: Sequence[int], gold: Sequence[int]) -> float:
    return 100 * sum(one == other for one, other in zip(found, gold, strict=True)) / len(gold)


def _rows(path: Path) -> list[tuple[str, int]]:
    rows = []
    for number, line in enumerate(common.read_lines([path]), 1):
        text, _, label = line.rpartition("\t")
        if not label.isdecimal():
            raise common.BadInputError(f"{path}, row {number}: not a text, a tab and the index of a label")
        rows.append((text, int(label)))
    return rows


if __name__ == "__main__":
    sys.exit(main())
