"""What two models say differently of the same examples: how often, how far apart, and of which.

One entry a task in `_TASKS` says what an answer is: how it is written, when two are equal, and how far they are apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxpress.runtime.evaluation import Evaluation, Scores
from onnxpress.runtime.evaluation.text_classification import THRESHOLD
from onnxpress.runtime.verification import row_cosines

_SHOWN_DIFFERENCE = 0.005
"""Of numbers, such as similarities, smaller differences are no other answers."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What a decoder continued a prompt with."""

    prompt: str
    token_ids: tuple[int, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Said:
    """All that one model says."""

    answers: Sequence[Any]
    """What `ask` of the task gave (runtime/evaluation)."""
    scores: Scores | None
    """None of examples without labels."""
    written: tuple[Written, ...] = ()
    """Of decoders."""


@dataclasses.dataclass(frozen=True)
class Change:
    """An example that two models answer differently."""

    index: int
    """Among the examples, from 0; of decoders among the prompts."""
    texts: tuple[str, ...]
    right: str | None
    """None: not known."""
    before: str
    after: str
    gain: float
    """Credit of the second model less that of the first, from -1 to 1; 0 where there is no credit."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How a model's answers differ from those of the base."""

    agreement: float | None
    """From 0 to 1: the share of equal answers; of embeddings their mean cosine similarity; of numbers their
    correlation; of decoders the mean share of tokens before the first that differs. None: they cannot be compared."""
    mean_divergence: float | None
    """Mean over the examples of how far the scores are apart; what that is says `DIVERGENCE`."""
    largest_divergence: float | None
    changed: tuple[Change, ...]
    """All of them, the worst first."""


DIVERGENCE = {
    "feature-extraction": "1 - cosine similarity of two embeddings of a text",
    "text-classification": "difference of a label's score, of the label for which it is largest; or of the number",
    "zero-shot-classification": "difference of a label's score, of the label for which it is largest",
    "token-classification": "share of a sentence's words with another label",
    "question-answering": "difference of the answer's score",
    "text-ranking": "difference of a document's score, of the document for which it is largest",
    "fill-mask": "difference of the first proposal's score",
    "text-generation": "difference of the log likelihood of a window, for each of its tokens",
}


def compare_answers(evaluation: Evaluation, before: Said, after: Said) -> Difference:
    """How the second model's answers differ from the first's."""
    if evaluation.task == "feature-extraction":
        return _embeddings(evaluation, before, after)
    if evaluation.task == "text-generation":
        return _texts(before, after)
    task = _TASKS[evaluation.task]
    distances = np.array([task.distance(*pair) for pair in zip(before.answers, after.answers, strict=True)])
    if isinstance(getattr(evaluation.examples[0], "gold", None), float):
        return _numbers(evaluation, before, after, distances)
    changed, equal = [], 0
    for index, example in enumerate(evaluation.examples):
        ours, theirs = before.answers[index], after.answers[index]
        if task.key(example, ours) == task.key(example, theirs):
            equal += 1
            continue
        shown = task.shown(example, ours, theirs)
        right = task.right(example) if before.scores else None
        changed.append(Change(index, task.texts(example), right, *shown, _gain(before, after, index)))
    changed.sort(key=lambda change: (change.gain, -distances[change.index], change.index))
    return Difference(equal / len(evaluation.examples), *_summed(distances), tuple(changed))


def _gain(before: Said, after: Said, index: int) -> float:
    if before.scores is None or after.scores is None or before.scores.evidence.kind != "share":
        return 0.0
    (one, most), (other, most_after) = before.scores.evidence.rows[index], after.scores.evidence.rows[index]
    return other / (most_after or 1.0) - one / (most or 1.0)


def _summed(distances: Any) -> tuple[float, float]:
    return float(np.mean(distances)), float(np.max(distances))


def _embeddings(evaluation: Evaluation, before: Said, after: Said) -> Difference:
    """Of two dimensions there are no cosines; which pairs have become less or more alike can still be said."""
    ours, theirs = np.asarray(before.answers), np.asarray(after.answers)
    one, other = (row_cosines(rows[0::2], rows[1::2]) for rows in (ours, theirs))
    changed = _changed_numbers(evaluation, before, one, other, lambda example: f"{example.score:g}")
    if ours.shape != theirs.shape:
        return Difference(None, None, None, changed)
    cosines = row_cosines(ours, theirs).astype(np.float64)
    return Difference(float(cosines.mean()), *_summed(1 - cosines), changed)


def _numbers(evaluation: Evaluation, before: Said, after: Said, distances: Any) -> Difference:
    ours, theirs = (np.array([float(answer.score) for answer in said.answers]) for said in (before, after))
    if ours.std() > 0 and theirs.std() > 0:
        agreement = float(np.corrcoef(ours, theirs)[0, 1])
    else:  # one of them says the same of everything
        agreement = float(np.array_equal(ours, theirs))
    changed = _changed_numbers(evaluation, before, ours, theirs, lambda example: f"{example.gold:g}")
    return Difference(agreement, *_summed(distances), changed)


def _changed_numbers(
    evaluation: Evaluation, before: Said, ours: Any, theirs: Any, right: Callable[[Any], str]
) -> tuple[Change, ...]:
    """The examples whose numbers lie furthest apart."""
    order = np.argsort(-np.abs(ours - theirs), kind="stable").tolist()
    return tuple(
        Change(
            index,
            evaluation.examples[index].texts,
            right(evaluation.examples[index]) if before.scores else None,
            f"{ours[index]:.3f}",
            f"{theirs[index]:.3f}",
            0.0,
        )
        for index in order
        if abs(ours[index] - theirs[index]) > _SHOWN_DIFFERENCE
    )


def _texts(before: Said, after: Said) -> Difference:
    shares, changed = [], []
    for index, (ours, theirs) in enumerate(zip(before.written, after.written, strict=True)):
        pairs = zip(ours.token_ids, theirs.token_ids, strict=False)
        longest = max(len(ours.token_ids), len(theirs.token_ids), 1)
        equal = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
        if equal is None:
            equal = min(len(ours.token_ids), len(theirs.token_ids))
        shares.append(equal / longest)
        if equal < longest:
            changed.append(Change(index, (ours.prompt,), None, ours.text, theirs.text, 0.0))
    changed.sort(key=lambda change: (shares[change.index], change.index))
    agreement = sum(shares) / len(shares) if shares else None
    if [tokens for _, tokens in before.answers] != [tokens for _, tokens in after.answers]:
        return Difference(agreement, None, None, tuple(changed))  # texts are cut otherwise: other windows
    apart = [abs(one - other) / tokens for (one, tokens), (other, _) in zip(before.answers, after.answers, strict=True)]
    return Difference(agreement, *_summed(apart), tuple(changed))


@dataclasses.dataclass(frozen=True)
class _Task:
    """What an answer of a task is."""

    key: Callable[[Any, Any], object]
    """Example and answer to what is compared with ==."""
    shown: Callable[[Any, Any, Any], tuple[str, str]]
    """Example and two answers to how they are written."""
    distance: Callable[[Any, Any], float]
    texts: Callable[[Any], tuple[str, ...]]
    right: Callable[[Any], str]


def _labels_of(example: Any, answer: Any) -> object:
    if isinstance(example.gold, tuple):
        return tuple(sorted(name for name, score in answer.scores.items() if score >= THRESHOLD))
    return answer.label


def _shown_labels(example: Any, before: Any, after: Any) -> tuple[str, str]:
    first, second = (_joined(_labels_of(example, answer)) for answer in (before, after))
    return first, second


def _joined(labels: Any) -> str:
    return labels if isinstance(labels, str) else " | ".join(labels) or "no label"


def _label_distance(before: Any, after: Any) -> float:
    if before.scores.keys() == after.scores.keys():
        return float(max(abs(before.scores[name] - after.scores[name]) for name in before.scores))
    return float(abs(before.score - after.score))


def _shown_tags(example: Any, before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """Only the words that are labelled differently."""
    apart = [row for row in zip(example.words, before, after, strict=True) if row[1] != row[2]]
    return ", ".join(f"{word}: {tag}" for word, tag, _ in apart), ", ".join(f"{word}: {tag}" for word, _, tag in apart)


def _right_tags(example: Any) -> str:
    found = [f"{word}: {tag}" for word, tag in zip(example.words, example.tags, strict=True) if tag != "O"]
    return ", ".join(found) or "no entity"


def _order(example: Any, ranking: Any) -> object:
    return tuple(place.index for place in ranking)


def _shown_rankings(example: Any, before: Any, after: Any) -> tuple[str, str]:
    """The first place at which they differ."""
    place = next(i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one.index != other.index)
    first, second = (f"{place + 1}. {example.documents[ranking[place].index]}" for ranking in (before, after))
    return first, second


def _ranking_distance(before: Any, after: Any) -> float:
    scores: list[Mapping[int, float]] = [{place.index: place.score for place in ranking} for ranking in (before, after)]
    return max(abs(scores[0][index] - scores[1][index]) for index in scores[0])


_CLASSES = _Task(_labels_of, _shown_labels, _label_distance, lambda example: example.texts, lambda x: _joined(x.gold))
_TASKS = {
    "text-classification": _CLASSES,
    "zero-shot-classification": _CLASSES,
    "token-classification": _Task(
        key=lambda example, tags: tuple(tags),
        shown=_shown_tags,
        distance=lambda before, after: (
            sum(one != other for one, other in zip(before, after, strict=True)) / len(before)
        ),
        texts=lambda example: example.texts,
        right=_right_tags,
    ),
    "question-answering": _Task(
        key=lambda example, answer: answer.text,
        shown=lambda example, before, after: (before.text or "no answer", after.text or "no answer"),
        distance=lambda before, after: abs(before.score - after.score),
        texts=lambda example: (example.question, example.context),
        right=lambda example: " | ".join(dict.fromkeys(example.answers)) or "no answer",
    ),
    "text-ranking": _Task(
        key=_order,
        shown=_shown_rankings,
        distance=_ranking_distance,
        texts=lambda example: (example.query,),
        right=lambda example: " | ".join(
            text for text, level in zip(example.documents, example.relevance, strict=True) if level
        ),
    ),
    "fill-mask": _Task(
        key=lambda example, row: row[0].token,
        shown=lambda example, before, after: (before[0].token, after[0].token),
        distance=lambda before, after: abs(before[0].score - after[0].score),
        texts=lambda example: (example.text,),
        right=lambda example: example.target,
    ),
}
