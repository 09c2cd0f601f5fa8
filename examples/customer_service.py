"""Answers customers' questions from help articles, in English and Chinese.

    python -m examples.make_models --output examples-models
    python -m examples.customer_service "How long does delivery take?" "怎么取消订单？"

A question goes through five steps:

1. A guard reads it, and may stop it.
2. The embedder makes a vector of it; the nearest articles in the language of the question are candidates.
3. The reranker reads question and candidate together. Where none scores enough, a person takes over.
4. The writer gets the best articles and chooses one of their sentences, held to them by a grammar: it cannot invent.
   With `--free` it writes what it likes.
5. The guard reads the answer before anybody else does.

Without questions on the command line, each line of stdin is one.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnxpress
from examples.command import DATA, bundle_of, make_parser, run
from examples.rows import read_rows
from onnxpress.runtime.errors import BlockedError, InvalidInputError
from onnxpress.runtime.generation.constraints import choice
from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.guards.guards import Guards
from onnxpress.runtime.guards.settings import GuardSettings
from onnxpress.runtime.tasks.embedding import Embedder
from onnxpress.runtime.tasks.ranking import Reranker

CANDIDATES = 5  # articles that the reranker reads
BEST = 2  # articles that the writer reads
MARGIN = 0.03  # of the reranker's score: an article that is further below the best is left out
TASKS = {
    "embedder": "feature-extraction",
    "reranker": "text-ranking",
    "writer": "text-generation",
    "guard": "text-classification",
}
PHRASES = {
    "en": {
        "task": "Answer the customer with these articles:",
        "hand over": "I do not know that. A colleague will write to you.",
        "stopped": "I cannot help with that.",
    },
    "zh": {
        "task": "请根据以下文章回答顾客：",
        "hand over": "这个问题我不知道，将由同事回复您。",
        "stopped": "这个我无法帮忙。",
    },
}


@dataclasses.dataclass(frozen=True)
class Article:
    """A help article."""

    id: str
    language: str
    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join([f"{self.title}:", *self.sentences])


def read_articles(path: Path) -> list[Article]:
    """
    Raises:
        InvalidInputError: the file cannot be read, is empty, or has other lines.
    """
    articles = []
    for row in read_rows(path, "id", "language", "title"):
        sentences = row.get("sentences")
        if not isinstance(sentences, list) or not sentences or not all(isinstance(each, str) for each in sentences):
            raise InvalidInputError(f"{path}: the article {row['id']!r} has no list of sentences")
        articles.append(Article(row["id"], row["language"], row["title"], tuple(sentences)))
    if not articles:
        raise InvalidInputError(f"{path} has no articles")
    return articles


def language_of(text: str) -> str:
    """`zh` where there is a Chinese character, else `en`."""
    return "zh" if re.search(r"[\u3400-\u9fff]", text) else "en"


def messages_for(question: str, articles: Sequence[Article]) -> list[dict[str, str]]:
    """What the writer reads."""
    task = PHRASES[language_of(question)]["task"]
    known = "\n".join(article.text for article in articles)
    return [{"role": "system", "content": f"{task}\n{known}"}, {"role": "user", "content": question}]


class Assistant:
    """Finds articles and answers with them."""

    def __init__(
        self, embedder: Embedder, reranker: Reranker, writer: Generator, articles: Sequence[Article], least_score: float
    ) -> None:
        """
        Args:
            embedder: of questions and articles.
            reranker: of articles.
            writer: with a chat template.
            articles: that are known.
            least_score: of the reranker, for an article that answers a question.
        """
        self.embedder, self.reranker, self.writer = embedder, reranker, writer
        self.least_score = least_score
        self.articles = list(articles)
        self.vectors = embedder.embed([article.text for article in self.articles])  # [articles, dimension], length 1

    def find(self, question: str) -> list[tuple[Article, float]]:
        """Articles that answer a question and their scores, the best first; none where a person must."""
        there = [i for i, article in enumerate(self.articles) if article.language == language_of(question)]
        nearness = self.vectors[there] @ self.embedder.embed(question)[0]
        candidates = [self.articles[there[i]] for i in (-nearness).argsort()[:CANDIDATES]]
        ranked = self.reranker.rank(question, [article.text for article in candidates], top_k=BEST)
        least = max(self.least_score, ranked[0].score - MARGIN) if ranked else 0.0
        return [(candidates[each.index], each.score) for each in ranked if each.score >= least]

    def choose(self, question: str, articles: Sequence[Article]) -> str:
        """The sentence of the articles that the writer finds likeliest."""
        sentences = [sentence for article in articles for sentence in article.sentences]
        messages = messages_for(question, articles)
        return self.writer.chat(messages, grammar=choice(sentences), temperature=0.0, max_new_tokens=200).text

    def write(self, question: str, articles: Sequence[Article]) -> Iterator[str]:
        """What the writer says of its own, in pieces."""
        return self.writer.stream_chat(messages_for(question, articles), temperature=0.0, max_new_tokens=200)


def answer(assistant: Assistant, guards: Guards, question: str, free: bool) -> None:
    """Print the answer to a question."""
    phrases = PHRASES[language_of(question)]
    print(f"> {question}")
    try:
        guards.check(question, "input")
        found = assistant.find(question)
        if not found:
            print(f"{phrases['hand over']}\n", flush=True)
            return
        articles = [article for article, _ in found]
        pieces = assistant.write(question, articles) if free else [assistant.choose(question, articles)]
        for piece in guards.watched(pieces):
            print(piece, end="", flush=True)
        print("\n  [" + "; ".join(f"{article.id} {score:.2f}" for article, score in found) + "]\n", flush=True)
    except BlockedError as error:
        print(f"{phrases['stopped']}\n  [{error}]\n", flush=True)


def guard_settings(bundle: Path, stop: Sequence[str], rule: str) -> list[GuardSettings]:
    """A classifier for what comes and goes, and a function for what goes.

    Args:
        bundle: of the classifier.
        stop: a label and its threshold each, as `insult=0.7`.
        rule: the function, as `package.module:name`.

    Raises:
        InvalidInputError: they are something else.
    """
    thresholds = {}
    for each in stop:
        label, _, threshold = each.rpartition("=")
        try:
            thresholds[label] = float(threshold)
        except ValueError as error:
            raise InvalidInputError(f"--stop is {each!r}; give a label and a probability, as insult=0.7") from error
    return [
        GuardSettings("conduct", bundle=str(bundle), thresholds=thresholds),
        GuardSettings("secrets", callable=rule, on=("output",)),
    ]


def serve(options: argparse.Namespace) -> None:
    """Load everything, then answer."""
    articles = read_articles(options.articles)
    assistant = Assistant(
        onnxpress.load(bundle_of(options, "embedder"), task="feature-extraction"),
        onnxpress.load(bundle_of(options, "reranker"), task="text-ranking"),
        onnxpress.load(bundle_of(options, "writer"), task="text-generation"),
        articles,
        options.least_score,
    )
    guards = Guards.load(guard_settings(bundle_of(options, "guard"), options.stop, options.rule))
    try:
        for question in options.questions or map(str.strip, sys.stdin):
            if question:
                answer(assistant, guards, question, options.free)
    finally:
        guards.close()
        assistant.writer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = make_parser("customer_service", __doc__, TASKS)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="left out: the lines of stdin")
    parser.add_argument("--articles", type=Path, metavar="FILE", default=DATA / "articles.jsonl", help="JSON lines")
    parser.add_argument("--free", action="store_true", help="let the writer use its own words")
    parser.add_argument("--least-score", type=float, default=0.5, help="of the reranker, below it a person takes over")
    parser.add_argument(
        "--stop", nargs="+", metavar="LABEL=P", default=["insult=0.9", "manipulation=0.9"], help="what the guard stops"
    )
    parser.add_argument(
        "--rule", metavar="MODULE:NAME", default="examples.rules:no_card_numbers", help="a function that reads answers"
    )
    options = parser.parse_args(arguments)
    return run(lambda: serve(options), "customer_service")


if __name__ == "__main__":
    sys.exit(main())
