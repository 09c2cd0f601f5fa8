"""runtime/evaluation/: figures of parts and resamples of the examples, and the interval of a difference."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnxpress.exporter.gate import _scores
from onnxpress.runtime.evaluation import Evaluation, Evidence, Scores, evaluate, paired_interval
from onnxpress.runtime.evaluation.feature_extraction import ScoredPair
from onnxpress.runtime.evaluation.fill_mask import Gap
from onnxpress.runtime.evaluation.intervals import resamples
from onnxpress.runtime.evaluation.question_answering import Question
from onnxpress.runtime.evaluation.text_classification import LabelledText
from onnxpress.runtime.evaluation.text_generation import Passage
from onnxpress.runtime.evaluation.text_ranking import RankedQuery
from onnxpress.runtime.evaluation.token_classification import TaggedSentence

SIZE = 40
TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def unit(*parts: object) -> float:
    """A number from 0 to 1 that depends on nothing but `parts`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6]) / 2**48


@dataclasses.dataclass(frozen=True)
class Said:
    label: str = ""
    score: float = 0.0
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    text: str = ""
    index: int = 0
    token: str = ""
    token_id: int = 0


class Model:
    """Does every task, right about as often as `skill` says; what it says of a text depends on the text alone."""

    mask_token = "[MASK]"

    def __init__(self, skill: float) -> None:
        self.skill = skill

    def right(self, text: str) -> bool:
        return unit(self.skill, text) < self.skill

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        angles = [
            0.0 if text.startswith("a") else round((float(text[1:]) + 2 * unit(self.skill, text)) / SIZE, 1)
            for text in texts
        ]
        return np.array([(np.cos(angle), np.sin(angle)) for angle in angles], np.float32)

    def classify(self, texts: list[str]) -> list[Said]:
        found = []
        for text in texts:
            label = "yes" if self.right(text) == (int(text) % 2 == 0) else "no"
            score = round(int(text) + 20 * unit(self.skill, text))
            found.append(Said(label, score, {"yes": float(label == "yes"), "no": unit(text, self.skill)}))
        return found

    def label_words(self, sentences: list[list[str]]) -> list[list[str]]:
        return [
            [TAGS[int(word) % 4 if self.right(word) else 0] for word in sentence if word != "."] + ["O"]
            for sentence in sentences
        ]

    def answer(self, questions: list[str], contexts: list[str], **options: Any) -> list[Said]:
        return [Said(text="the red house" if self.right(text) else "a house there") for text in questions]

    def rank(self, query: str, documents: list[str]) -> list[Said]:
        order = sorted(range(len(documents)), key=lambda index: unit(query, index, self.skill))
        return [Said(index=index) for index in order]

    def fill(self, texts: list[str], *, top_k: int) -> list[list[Said]]:
        return [[Said(token="x", token_id=1 if self.right(text) else 2)] for text in texts]

    def token_id_of(self, text: str) -> int:
        return 1

    def log_likelihoods(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        return [(-20 * unit(text, self.skill) - 5, 5 + int(10 * unit(text))) for text in texts]


def tagged(index: int) -> TaggedSentence:
    words = [str(round(1000 * unit(index, word))) for word in range(3 + index % 5)]
    return TaggedSentence((*words, "."), (*(TAGS[int(word) % 4] for word in words), "O"))


def part_of_speech(index: int) -> TaggedSentence:
    words = [str(round(1000 * unit(index, word))) for word in range(1 + index % 5)]
    return TaggedSentence(tuple(words), tuple("NOUN" if int(word) % 2 else "VERB" for word in words))


EXAMPLES: dict[str, tuple[str, Callable[[int], Any], str]] = {
    "embeddings": ("feature-extraction", lambda i: ScoredPair(float(-(i // 2)), f"a{i}", f"b{i}"), "spearman"),
    "labels": ("text-classification", lambda i: LabelledText(str(i), None, ("yes", "no")[i % 2]), "accuracy"),
    "several": ("text-classification", lambda i: LabelledText(str(i), None, ("yes", "no")[: i % 3]), "accuracy"),
    "numbers": ("text-classification", lambda i: LabelledText(str(i), None, float(i // 3)), "spearman"),
    "entities": ("token-classification", tagged, "f1"),
    "answers": ("question-answering", lambda i: Question(str(i), "there", ("red house",) if i % 4 else ()), "f1"),
    "ranks": ("text-ranking", lambda i: RankedQuery(str(i), tuple("abcdefghijkl"), (0, 1) * 6), "mrr_at_10"),
    "gaps": ("fill-mask", lambda i: Gap(f"{i} [MASK]", "x", ""), "top_1"),
    "passages": ("text-generation", lambda i: Passage(str(i)), "perplexity"),
}


def examples_of(kind: str) -> Evaluation:
    task, make, metric = EXAMPLES[kind]
    return Evaluation(task, tuple(make(index) for index in range(SIZE)), ("made up",), "0", metric, "")


def drawn(counts: npt.NDArray[np.int64]) -> list[int]:
    indices: list[int] = np.repeat(np.arange(len(counts)), counts).tolist()
    return indices


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_figure_of_a_draw_is_that_of_a_file_with_these_examples(kind: str) -> None:
    evaluation = examples_of(kind)
    model = Model(0.7)
    counts = next(resamples(SIZE, 6))
    counts = np.concatenate([counts, np.ones((1, SIZE), np.int64), (np.arange(SIZE) < 15).astype(np.int64)[None]])
    figures = evaluate(model, evaluation).evidence.figures(counts)
    for row, found in zip(counts, figures, strict=True):
        assert found == pytest.approx(evaluate(model, evaluation.subset(drawn(row))).primary, abs=1e-9)
    assert len(set(figures)) > 3


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_interval_is_that_of_a_plain_loop_over_the_draws(kind: str) -> None:
    evaluation = examples_of(kind)
    before, after = (evaluate(Model(skill), evaluation) for skill in (0.9, 0.6))
    interval = paired_interval(evaluation, before, after)
    differences = []
    for counts in next(resamples(SIZE)):
        figures = [scores.evidence.figures(counts[None])[0] for scores in (before, after)]
        worse = 100 * (figures[1] / figures[0] - 1) if kind == "passages" else figures[1] - figures[0]
        differences.append(worse)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))
    expected = evaluation.loss(before.primary, after.primary) * (1 if kind == "passages" else -1)
    assert interval.difference == pytest.approx(expected)
    assert interval.low <= interval.difference <= interval.high
    assert paired_interval(evaluation, before, after) == interval


def test_words_of_sentences_of_any_length_count_alike() -> None:
    examples = tuple(part_of_speech(index) for index in range(SIZE))
    evaluation = Evaluation("token-classification", examples, ("made up",), "0", "accuracy", "")

    class Tagger:
        def label_words(self, sentences: list[list[str]]) -> list[list[str]]:
            return [["NOUN" if int(word) % 3 else "VERB" for word in sentence] for sentence in sentences]

    scores = evaluate(Tagger(), evaluation)
    for counts in next(resamples(SIZE, 5)):
        found = scores.evidence.figures(counts[None])[0]
        assert found == pytest.approx(evaluate(Tagger(), evaluation.subset(drawn(counts))).primary)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_scores_survive_the_cache(kind: str) -> None:
    scores = evaluate(Model(0.7), examples_of(kind))
    assert _scores(json.loads(json.dumps(dataclasses.asdict(scores)))) == scores


def of_credits(*credits: float) -> Scores:
    return Scores({"accuracy": 100 * sum(credits) / len(credits)}, (), Evidence.mean(credits))


def test_the_true_difference_lies_in_as_many_intervals_as_was_asked_for() -> None:
    random = np.random.default_rng(5)
    evaluation = Evaluation("text-classification", (), (), "", "accuracy", "")
    inside = 0
    for _ in range(120):
        first = random.random(150) < 0.9
        second = np.where(random.random(150) < 0.2, random.random(150) < 0.5, first)  # 8 points worse
        interval = paired_interval(evaluation, of_credits(*first.tolist()), of_credits(*second.tolist()))
        inside += interval.low <= -8 <= interval.high
    assert 0.88 <= inside / 120 <= 1


def test_a_higher_level_is_wider() -> None:
    evaluation = examples_of("labels")
    before, after = (evaluate(Model(skill), evaluation) for skill in (0.9, 0.6))
    narrow, wide = (paired_interval(evaluation, before, after, level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_examples_are_drawn_for_both_models_together() -> None:
    """Two models that are right on the same examples do not differ, however much the accuracy itself may vary."""
    evaluation = Evaluation("text-classification", (), (), "", "accuracy", "")
    half = of_credits(*(0.0, 1.0) * 20)
    interval = paired_interval(evaluation, half, half)
    assert (interval.difference, interval.low, interval.high) == (0, 0, 0)


@pytest.mark.parametrize("rows", [((1.0, 1.0),), ((math.nan, 1.0), (1.0, 1.0))])
def test_nothing_is_said_of_one_example_or_of_what_is_no_number(rows: tuple[tuple[float, float], ...]) -> None:
    evaluation = Evaluation("text-classification", (), (), "", "accuracy", "")
    scores = Scores({"accuracy": rows[0][0]}, (), Evidence("share", rows))
    assert not paired_interval(evaluation, scores, scores).finite


def test_a_model_that_says_no_number_has_no_correlation() -> None:
    gold = (1.0, 2.0, 3.0)
    evidence = Evidence("rank correlation", tuple(zip((0.3, math.nan, 0.1), gold, strict=True)))
    assert evidence.figures(np.array([[1, 1, 1], [1, 0, 1]])) == pytest.approx([0, -100])


def test_a_subset_has_its_own_examples_and_hash() -> None:
    evaluation = examples_of("labels")
    part = evaluation.subset([3, 1])
    assert part.examples == (evaluation.examples[3], evaluation.examples[1])
    assert part.sha256 not in (evaluation.sha256, evaluation.subset([1, 3]).sha256)
    assert (part.metric, part.files) == (evaluation.metric, evaluation.files)


def test_many_examples_are_drawn_in_parts() -> None:
    parts = list(resamples(900_000, 5))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert all((part.sum(axis=1) == 900_000).all() for part in parts)
    assert not np.array_equal(parts[0][0], parts[1][0])
