"""Accuracy of rerankers: are the relevant documents of a query at the top? Figures are ir-measures'.

A file is JSONL with query, positive and negative documents, or has rows of query, document, relevance.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from onnxpress.runtime.data.options import EVALUATION_SAMPLES, Source
from onnxpress.runtime.data.sampling import Sample, sample_groups
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation.base import Scores, needs
from onnxpress.runtime.evaluation.evidence import Evidence
from onnxpress.runtime.evaluation.rows import Layout, Positions, find_columns, is_number, read_rows, shown, text_of


@dataclasses.dataclass(frozen=True)
class RankedQuery:
    """A query, documents that may answer it, and how well each does."""

    query: str
    documents: tuple[str, ...]
    relevance: tuple[int, ...]
    """0 is not relevant; higher is better."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The documents."""
        return self.documents

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        """The query with each document."""
        return tuple((self.query, document) for document in self.documents)


class RankedDocument(Protocol):
    """One place of a ranking."""

    @property
    def index(self) -> int:
        """Which of the documents given."""


class Ranks(Protocol):
    """What is needed of a model."""

    def rank(self, query: str, documents: list[str], /) -> Sequence[RankedDocument]:
        """All documents, the best first."""


def _by_name(names: Sequence[str], chosen: Positions) -> Positions | None:
    """Columns of a header, or keys: one document a row, or all of a query."""
    query = ("query", "question")
    return find_columns(
        names,
        chosen,
        query=query,
        document=("document", "passage", "doc", "text"),
        relevance=("relevance", "label", "score", "rel", "grade"),
    ) or find_columns(
        names,
        chosen,
        query=query,
        positive=("positive", "positives", "pos"),
        negative=("negative", "negatives", "neg"),
    )


def _by_order(row: Sequence[str]) -> Positions | None:
    """Columns without a header."""
    return {"query": 0, "document": 1, "relevance": 2} if len(row) >= 3 and is_number(row[2]) else None


COLUMNS = {name: name for name in ("query", "document", "relevance", "positive", "negative")}
_LAYOUT = Layout(
    _by_name,
    _by_order,
    "query, document and relevance (in JSONL also query, positive and negative)",
    "query, document, relevance",
    COLUMNS,
)


def read(sources: Sequence[Source], labels: Sequence[str], function: str, samples: int | None) -> Sample[RankedQuery]:
    """Queries from TSV, CSV, JSONL or datasets, in the order in which each is first met. The rows of a query may lie
    anywhere in a file.

    Raises:
        InvalidInputError: a file cannot be used, or a query has no relevant document; the text says which line.
    """
    drawn = sample_groups(_judged(sources), samples or EVALUATION_SAMPLES)
    queries = []
    for (_, query), rows in drawn.items:
        documents = [document for _, of_row in rows for document in of_row]
        if not any(relevance for _, relevance in documents):
            raise InvalidInputError(f"{rows[0][0]}: the query {query[:40]!r} has no relevant document; leave it out")
        queries.append(_neutral(query, documents))
    return Sample(tuple(queries), drawn.total)


def _judged(sources: Sequence[Source]) -> Iterator[tuple[tuple[int, str], tuple[str, list[tuple[str, int]]]]]:
    """File and query; place and documents of each row."""
    for index, source in enumerate(sources):
        found = False
        for row in read_rows(source, _LAYOUT):
            found = True
            query = text_of(row.place, "the query", row.cells["query"])
            yield (index, query), (row.place, list(_documents(row.place, row.cells)))
        if not found:
            raise InvalidInputError(f"{source} has no queries")


def figure(queries: Sequence[RankedQuery]) -> tuple[str, str]:
    """Key and name of the primary figure."""
    return "mrr_at_10", "MRR@10 x 100"


def ask(model: Ranks, queries: Sequence[RankedQuery]) -> list[Sequence[RankedDocument]]:
    """The ranking of each query's documents."""
    return [model.rank(item.query, list(item.documents)) for item in queries]


def score(model: Ranks, queries: Sequence[RankedQuery], rankings: Sequence[Sequence[RankedDocument]]) -> Scores:
    """Mean over the queries of the reciprocal rank of the first relevant document, and of nDCG with the relevance as
    gain, both over the first 10 places.

    Raises:
        InvalidInputError: ir-measures is not installed.
    """
    with needs("ir-measures"):
        import ir_measures
    orders = [tuple(place.index for place in ranking) for ranking in rankings]
    relevance = {str(number): _named(item.relevance) for number, item in enumerate(queries)}
    # The libraries order by score, and equal ones in ways of their own: they get the model's order as scores.
    found = {
        str(number): {str(document): float(-place) for place, document in enumerate(order)}
        for number, order in enumerate(orders)
    }
    mrr, ndcg = ir_measures.RR @ 10, ir_measures.nDCG @ 10
    figures, of_queries = ir_measures.calc([mrr, ndcg], relevance, found)
    metrics = {"mrr_at_10": 100.0 * float(figures[mrr]), "ndcg_at_10": 100.0 * float(figures[ndcg])}
    ranks = {entry.query_id: float(entry.value) for entry in of_queries if entry.measure == mrr}
    return Scores(metrics, tuple(orders), Evidence.mean(ranks[str(number)] for number in range(len(queries))))


def _named(relevance: Sequence[int]) -> dict[str, int]:
    return {str(document): level for document, level in enumerate(relevance)}


def _documents(place: str, cells: Any) -> Iterator[tuple[str, int]]:
    if "document" in cells:
        level = cells["relevance"]
        if not is_number(level) or float(level) < 0 or float(level) != int(float(level)):
            raise InvalidInputError(f"{place}: the relevance {shown(level)} is not a whole number of at least 0")
        yield text_of(place, "the document", cells["document"]), int(float(level))
        return
    for name, level in (("positive", 1), ("negative", 0)):
        documents = cells[name] if isinstance(cells[name], list) else [cells[name]]
        for document in documents:
            yield text_of(place, f"a {name} document", document), level


def _neutral(query: str, documents: Sequence[tuple[str, int]]) -> RankedQuery:
    """The documents in an order that says nothing about them. Files have the relevant ones first, and a model that
    scores all alike, which leaves them as they are, would seem perfect."""
    ordered = sorted(documents, key=lambda item: hashlib.sha256(item[0].encode("utf-8", "replace")).digest())
    return RankedQuery(query, tuple(text for text, _ in ordered), tuple(level for _, level in ordered))
