"""Recommends items to somebody by what they looked at before.

    python -m examples.make_models --output examples-models
    python -m examples.recommender --history coffee-1 coffee-5

1. The embedder makes a vector of each item, once.
2. The mean of the history's vectors is the query. The nearest items by cosine are candidates, without those in the
   history. This is fast, and reads each item alone.
3. The cross-encoder reads each candidate together with each of the latest items of the history. This is slow and sees
   more. The best score counts: an item need not go with all that somebody likes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import onnxpress
from examples.command import DATA, bundle_of, make_parser, positive, run
from examples.rows import read_rows
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.tasks.embedding import Embedder
from onnxpress.runtime.tasks.ranking import Reranker

LATEST = 3  # items of the history that the cross-encoder reads


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to sell or to read."""

    id: str
    title: str
    text: str

    @property
    def description(self) -> str:
        """What models read."""
        return f"{self.title}. {self.text}"


class Stages:
    """What each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Around a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


class Recommender:
    """Items and their vectors."""

    def __init__(self, embedder: Embedder, reranker: Reranker, items: Sequence[Item], stages: Stages) -> None:
        """
        Args:
            embedder: of items.
            reranker: of a candidate after an item of the history.
            items: with different ids.
            stages: get the times.
        """
        self.reranker, self.stages = reranker, stages
        self.items = {item.id: item for item in items}
        self.row = {id: row for row, id in enumerate(self.items)}
        with stages.timed(f"embed {len(items)} items"):
            vectors = embedder.embed([item.description for item in self.items.values()])
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # [items, dimension]

    def candidates(self, history: Sequence[Item], count: int) -> list[Item]:
        """The items nearest to the history, and not in it."""
        with self.stages.timed("search"):
            seen = [self.row[item.id] for item in history]
            nearness = self.vectors @ self.vectors[seen].mean(axis=0)
            nearness[seen] = -np.inf
            count = min(count, len(self.items) - len(set(seen)))
            # argpartition finds the largest without sorting all: with many items most of the time.
            largest = np.argpartition(-nearness, max(count - 1, 0))[:count]
            items = list(self.items.values())
            return [items[row] for row in largest[np.argsort(-nearness[largest])]]

    def rank(self, history: Sequence[Item], candidates: Sequence[Item]) -> list[tuple[Item, float]]:
        """Candidates and scores, the best first."""
        latest = history[-LATEST:]
        with self.stages.timed(f"rank {len(candidates)} candidates"):
            pairs = [(item.description, other.description) for item in latest for other in candidates]
            scores = self.reranker.score(pairs).reshape(len(latest), len(candidates)).max(axis=0)
            return [(candidates[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def read_items(path: Path) -> list[Item]:
    """
    Raises:
        InvalidInputError: the file cannot be read, or has other lines.
    """
    return [Item(row["id"], row["title"], row["text"]) for row in read_rows(path, "id", "title", "text")]


def history_of(ids: Sequence[str], items: Sequence[Item]) -> list[Item]:
    """
    Raises:
        InvalidInputError: an id is not known.
    """
    by_id = {item.id: item for item in items}
    for id in ids:
        if id not in by_id:
            raise InvalidInputError(f"there is no item {id!r}; there are {', '.join(list(by_id)[:5])} and others")
    return [by_id[id] for id in ids]


def recommend(options: argparse.Namespace) -> None:
    """Load everything, then print recommendations."""
    items = read_items(options.items)
    history = history_of(options.history, items)
    embedder = onnxpress.load(bundle_of(options, "embedder"), task="feature-extraction")
    reranker = onnxpress.load(bundle_of(options, "reranker"), task="text-ranking")
    stages = Stages()
    recommender = Recommender(embedder, reranker, items, stages)
    ranked = recommender.rank(history, recommender.candidates(history, options.candidates))

    print("Looked at:")
    for item in history:
        print(f"      {item.id:20} {item.title}")
    print("Recommended:")
    for item, score in ranked[: options.top]:
        print(f"{score:5.2f} {item.id:20} {item.title}")
    print("Took: " + ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in stages.seconds.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    tasks = {"embedder": "feature-extraction", "reranker": "text-ranking"}
    parser = make_parser("recommender", __doc__, tasks)
    parser.add_argument("--items", type=Path, metavar="FILE", default=DATA / "items.jsonl", help="JSON lines")
    parser.add_argument("--history", nargs="+", metavar="ID", required=True, help="items looked at, the latest last")
    parser.add_argument("--candidates", type=positive, default=15, help="items that the cross-encoder reads")
    parser.add_argument("--top", type=positive, default=5, help="items to recommend")
    options = parser.parse_args(arguments)
    return run(lambda: recommend(options), "recommender")


if __name__ == "__main__":
    sys.exit(main())
