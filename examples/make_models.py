"""Makes the bundles that the other programs use, within about a minute: tiny models, trained on `examples/data`.

    pip install 'onnxpress[cpu,export]'
    python -m examples.make_models --output examples-models

They show how the programs work, and know nothing beyond these data. The README says which models to take instead.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxpress
from examples.command import DATA, MODELS, run
from examples.customer_service import Article, messages_for
from examples.rows import Row, read_rows
from examples.training import train_classifier, train_embedder, train_reranker
from examples.writer_training import Messages, train_writer

Groups = dict[str, list[str]]


def topics() -> Groups:
    """Texts that belong together, in both languages: articles with questions about them, kinds of items, and what
    customers ask that no article answers."""
    groups: Groups = collections.defaultdict(list)
    for row in read_rows(DATA / "articles.jsonl", "subject"):
        article = article_of(row)
        groups[row["subject"]] += [article.title, article.text, *article.sentences, article.text]
        groups[row["subject"]] += [asked["question"] for asked in row["asked"]]
    for row in read_rows(DATA / "items.jsonl", "topic", "title", "text"):
        groups[f"item: {row['topic']}"] += [row["title"], row["text"], f"{row['title']}. {row['text']}"]
    for row in read_rows(DATA / "off_topic.jsonl", "topic", "text"):
        groups[f"other: {row['topic']}"].append(row["text"])
    return groups


def documents() -> Groups:
    """What questions, and items of a history, are ranked against."""
    groups: Groups = collections.defaultdict(list)
    for row in read_rows(DATA / "articles.jsonl", "subject"):
        groups[row["subject"]].append(article_of(row).text)
    for row in read_rows(DATA / "items.jsonl", "topic", "title", "text"):
        groups[f"item: {row['topic']}"].append(f"{row['title']}. {row['text']}")
    return groups


def article_of(row: Row) -> Article:
    """As the customer service reads it."""
    return Article(row["id"], row["language"], row["title"], tuple(row["sentences"]))


def labelled(path: Path) -> Groups:
    """Texts by their labels."""
    groups: Groups = collections.defaultdict(list)
    for row in read_rows(path, "label", "text"):
        groups[row["label"]].append(row["text"])
    return groups


def conduct() -> Groups:
    """What the guard stops; harmless is also what customers ask, and what the articles say."""
    groups = labelled(DATA / "guard.jsonl")
    for row in read_rows(DATA / "articles.jsonl"):
        groups["harmless"] += [*(asked["question"] for asked in row["asked"]), *row["sentences"], row["title"]]
    groups["harmless"] += [row["text"] for row in read_rows(DATA / "off_topic.jsonl", "text")]
    return groups


def chats(seed: int = 0) -> list[tuple[Messages, str]]:
    """Questions with the articles that the writer gets, and the sentence that answers: with one article, and with
    another before or after."""
    draw = random.Random(seed)
    rows = read_rows(DATA / "articles.jsonl", "language")
    made = []
    for row in rows:
        others = [article_of(other) for other in rows if other["language"] == row["language"] and other is not row]
        for asked in row["asked"]:
            for other in (None, draw.choice(others)):
                articles = [article_of(row)] if other is None else draw.sample([article_of(row), other], 2)
                made.append((messages_for(asked["question"], articles), row["sentences"][asked["answer"]]))
    return made


TRAINING: dict[str, Callable[[Path], Path]] = {
    "embedder": lambda folder: train_embedder(folder, topics(), steps=300),
    "reranker": lambda folder: train_reranker(
        folder, topics(), documents(), steps=400, start=folder.with_name("embedder")
    ),
    "classifier": lambda folder: train_classifier(folder, labelled(DATA / "sentiment.jsonl")),
    "guard": lambda folder: train_classifier(folder, conduct(), steps=300, layers=2),
    "writer": lambda folder: train_writer(folder, chats()),
}
"""The bundles and how their models are trained, in this order: the reranker begins as the embedder."""


def make_models(output: Path) -> None:
    """Train and press.

    Args:
        output: folder for the bundles; those of the same names there are replaced.
    """
    config = onnxpress.ExportConfig(measure="none", variants=("fp32",), force=True, cache=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, train in TRAINING.items():
            start = time.perf_counter()
            model = train(Path(folder) / name)
            trained = time.perf_counter()
            onnxpress.export(model, output / name, config)
            pressed = time.perf_counter()
            print(f"{name}: trained in {trained - start:.0f} s, pressed in {pressed - trained:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.make_models", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=MODELS)
    options = parser.parse_args(arguments)
    return run(lambda: make_models(options.output), "make_models")


if __name__ == "__main__":
    sys.exit(main())
