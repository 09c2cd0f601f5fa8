"""runtime/evaluation/: the figures of every task, against their definitions and values worked out by hand."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import Evaluation, Scores, evaluate, read_evaluation
from onnxpress.runtime.evaluation.feature_extraction import ScoredPair
from onnxpress.runtime.evaluation.fill_mask import Gap
from onnxpress.runtime.evaluation.question_answering import Question, f1_of, normalize
from onnxpress.runtime.evaluation.text_classification import LabelledText
from onnxpress.runtime.evaluation.text_ranking import RankedQuery
from onnxpress.runtime.evaluation.token_classification import TaggedSentence

FloatArray = npt.NDArray[np.float64]


def evaluation(task: str, *examples: Any) -> Evaluation:
    return Evaluation(task, examples, ("made up",), "", "", "")


# Embeddings


def ranks(values: Sequence[float]) -> FloatArray:
    """Ranks from 1, the mean rank where values are equal."""
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() + 1) / 2 for value in array])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the ranks."""
    x, y = ranks(a) - ranks(a).mean(), ranks(b) - ranks(b).mean()
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


class Embedder:
    """Puts the second sentence of pair i at `angles[i]` from the first, at any length."""

    def __init__(self, angles: Sequence[float], lengths: Sequence[float] | None = None) -> None:
        self.angles, self.lengths = angles, lengths
        self.calls: list[list[str]] = []

    def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        self.calls.append(texts)
        rows = []
        for text in texts:
            index = int(text[1:])
            angle = self.angles[index] if text[0] == "b" else 0.0
            size = self.lengths[index] if self.lengths and text[0] == "b" else 1.0
            rows.append((size * np.cos(angle), size * np.sin(angle)))
        return np.array(rows, np.float32)


def correlation(model: Any, scores: Sequence[float]) -> float:
    pairs = (ScoredPair(score, f"a{index}", f"b{index}") for index, score in enumerate(scores))
    return evaluate(model, evaluation("feature-extraction", *pairs)).primary


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 60)), min_size=3, max_size=40))
def test_it_is_the_correlation_of_ranks(rows: list[tuple[int, int]]) -> None:
    scores, steps = [row[0] / 2 for row in rows], [row[1] for row in rows]
    if len(set(scores)) < 2 or len(set(steps)) < 2:
        return
    found = correlation(Embedder([step / 20 for step in steps]), scores)
    assert found == pytest.approx(100 * spearman(scores, [-step for step in steps]), abs=1e-9)


def test_known_correlations() -> None:
    model = Embedder([0.1, 0.4, 0.8, 1.5])
    assert correlation(model, [5, 4, 3, 0]) == pytest.approx(100)
    assert correlation(model, [0, 1, 2, 9]) == pytest.approx(-100)
    # 1 - 6 * sum(d^2) / (n (n^2 - 1)) with one exchange of neighbours
    assert correlation(model, [5, 3, 4, 0]) == pytest.approx(80)


def test_lengths_of_vectors_do_not_count() -> None:
    assert correlation(Embedder([0.1, 0.4, 0.8, 1.5], lengths=[0.01, 1, 100, 1e4]), [5, 4, 3, 0]) == pytest.approx(100)


def test_all_texts_are_embedded_in_one_call_in_order() -> None:
    model = Embedder([0.1, 0.2, 0.3])
    correlation(model, [1, 2, 3])
    assert model.calls == [["a0", "b0", "a1", "b1", "a2", "b2"]]


@pytest.mark.parametrize("angles", [(0.5, 0.5, 0.5), (0.1, float("nan"), 0.2)])
def test_a_model_that_says_nothing_gets_0_points(angles: Sequence[float]) -> None:
    """NaN would never be less than what is wanted."""
    assert correlation(Embedder(angles), [1, 2, 3]) == 0


# Classification


@dataclasses.dataclass(frozen=True)
class Said:
    label: str
    score: float
    scores: Mapping[str, float]


class Classifier:
    """Says what it is told, whatever the text; keeps the texts."""

    def __init__(self, *answers: Mapping[str, float]) -> None:
        self.answers = answers

    def classify(self, texts: list[str | tuple[str, str]]) -> list[Said]:
        self.texts = texts
        best = [max(row, key=lambda name: row[name]) for row in self.answers]
        return [Said(label, row[label], row) for label, row in zip(best, self.answers, strict=True)]


def classify(*rows: tuple[str | tuple[str, ...] | float, Mapping[str, float]]) -> Scores:
    examples = [LabelledText("text", None, gold) for gold, _ in rows]
    return evaluate(Classifier(*(row for _, row in rows)), evaluation("text-classification", *examples))


def test_accuracy_and_macro_f1_of_labels() -> None:
    a, b, c = ({"a": 0.8, "b": 0.2, "c": 0.0}, {"a": 0.1, "b": 0.9, "c": 0.0}, {"a": 0.1, "b": 0.2, "c": 0.7})
    scores = classify(("a", a), ("a", a), ("a", b), ("b", b), ("b", c))
    # a: precision 1, recall 2/3; b: 1/2 and 1/2; c is said once and never right
    assert scores.metrics == {"accuracy": pytest.approx(60), "macro_f1": pytest.approx(100 * (0.8 + 0.5 + 0) / 3)}
    assert list(scores.metrics) == ["accuracy", "macro_f1"]
    assert scores.primary == pytest.approx(60)
    assert scores.predictions == ("a", "a", "b", "b", "c")


def test_a_label_that_occurs_nowhere_does_not_count() -> None:
    assert classify(("a", {"a": 1, "b": 0, "c": 0})).metrics == {"accuracy": 100, "macro_f1": 100}
    assert classify((("a",), {"a": 1, "b": 0, "c": 0})).metrics == {"accuracy": 100, "macro_f1": 100}


def test_pairs_go_to_the_model_as_tuples() -> None:
    for task in ("text-classification", "zero-shot-classification"):
        model = Classifier({"a": 1}, {"a": 1})
        evaluate(model, evaluation(task, LabelledText("p", "h", "a"), LabelledText("t", None, "a")))
        assert model.texts == [("p", "h"), "t"]


def test_several_labels_are_right_together_or_not() -> None:
    scores = classify(
        (("a", "b"), {"a": 0.9, "b": 0.5, "c": 0.49}),  # right: 0.5 is enough
        (("a",), {"b": 0.6, "a": 0.9, "c": 0.1}),  # b too many; another order of scores
        ((), {"a": 0.2, "b": 0.3, "c": 0.4}),  # right
        (("c",), {"a": 0.2, "b": 0.3, "c": 0.4}),  # c missed
    )
    # a: F1 1; b: precision 1/2, recall 1; c: 0
    assert scores.metrics == {"accuracy": pytest.approx(50), "macro_f1": pytest.approx(100 * (1 + 2 / 3 + 0) / 3)}
    assert scores.predictions == (("a", "b"), ("a", "b"), (), ())


def test_numbers_are_correlated() -> None:
    gold, said = (1.0, 2.0, 3.0, 4.0), (0.1, 0.2, 0.4, 0.3)
    scores = classify(*((number, {"LABEL_0": value}) for number, value in zip(gold, said, strict=True)))
    # Pearson: deviations (-1.5, -0.5, 0.5, 1.5) and (-0.15, -0.05, 0.15, 0.05)
    expected = 0.4 / np.sqrt(5 * 0.05)
    assert scores.metrics == {"spearman": pytest.approx(80), "pearson": pytest.approx(100 * expected)}
    assert scores.predictions == ()
    assert classify((1.0, {"x": 3.0}), (2.0, {"x": 3.0})).metrics == {"spearman": 0, "pearson": 0}


# Tokens


class Tagger:
    def __init__(self, *tags: str) -> None:
        self.tags = [row.split() for row in tags]

    def label_words(self, sentences: list[list[str]]) -> list[list[str]]:
        assert [len(words) for words in sentences] == [len(row) for row in self.tags]
        return self.tags


def tag(*rows: tuple[str, str]) -> Scores:
    sentences = [TaggedSentence(tuple("w" for _ in gold.split()), tuple(gold.split())) for gold, _ in rows]
    return evaluate(Tagger(*(found for _, found in rows)), evaluation("token-classification", *sentences))


def test_an_entity_is_right_as_a_whole() -> None:
    scores = tag(
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-ORG"),  # a person; a place that is called an organization
        ("B-PER I-PER I-PER", "B-PER I-PER O"),  # cut short
        ("O O B-LOC", "B-LOC O B-LOC"),  # one too many
    )
    precision, recall = 2 / 5, 2 / 4
    assert scores.metrics == {
        "f1": pytest.approx(100 * 2 * precision * recall / (precision + recall)),
        "precision": pytest.approx(100 * precision),
        "recall": pytest.approx(100 * recall),
    }
    assert next(iter(scores.metrics)) == "f1"
    assert scores.predictions[1] == ("B-PER", "I-PER", "O")


def test_an_entity_ends_with_its_sentence() -> None:
    assert tag(("O I-PER", "O I-PER"), ("I-PER O", "I-PER O")).metrics["recall"] == 100
    assert tag(("O I-PER", "O I-PER"), ("I-PER O", "O O")).metrics["recall"] == 50


@pytest.mark.parametrize(
    "found",
    ["I-LOC I-LOC O I-PER", "LOC LOC O PER", "B-LOC E-LOC O S-PER", "B-LOC L-LOC O U-PER", "B-LOC M-LOC O B-PER"],
)
def test_schemes_may_differ(found: str) -> None:
    assert tag(("B-LOC I-LOC O B-PER", found)).metrics == {"f1": 100, "precision": 100, "recall": 100}


def test_neighbours_of_one_type_are_two_entities() -> None:
    assert tag(("B-LOC B-LOC", "U-LOC U-LOC")).primary == 100
    assert tag(("B-LOC B-LOC", "I-LOC I-LOC")).primary == 0


def test_a_tagger_that_finds_nothing_gets_0_points() -> None:
    assert tag(("B-LOC O", "O O")).metrics == {"f1": 0, "precision": 0, "recall": 0}


def test_parts_of_speech_are_counted_word_by_word() -> None:
    scores = tag(("NOUN NOUN VERB", "NOUN PROPN VERB"), ("DET", "DET"))
    assert scores.metrics == {"accuracy": pytest.approx(75)}


# Questions


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("an A-team, a team", "ateam team"),  # punctuation goes first, so `a-team` has no article
        ("Theatre (the)", "theatre"),
        ("U.S.", "us"),
        ("«Café»", "«café»"),  # only ASCII punctuation
        ("a the an", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_by_the_official_script(answer: str, expected: str) -> None:
    assert normalize(answer) == expected


@pytest.mark.parametrize(
    ("found", "gold", "expected"),
    [
        ("Eiffel Tower", "the Eiffel tower", 1),
        ("Eiffel Tower in Paris", "Eiffel Tower", 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("very very big", "very big big", 2 / 3),  # words count as often as they occur in both
        ("Rome", "Paris", 0),
        ("", "", 1),
        ("the", "", 1),
        ("", "Rome", 0),
        ("Rome", "", 0),
    ],
)
def test_f1_of_words(found: str, gold: str, expected: float) -> None:
    assert f1_of(found, gold) == pytest.approx(expected)


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str


class Reader:
    def __init__(self, *answers: str) -> None:
        self.answers = answers

    def answer(
        self, questions: list[str], contexts: list[str], *, allow_no_answer: bool, max_answer_tokens: int
    ) -> list[Answer]:
        self.asked = questions, contexts, allow_no_answer
        return [Answer(text) for text in self.answers]


def test_questions_count_by_their_best_answer() -> None:
    answers = [("Ann", "Ann Lee"), ("Rome",), (), ()]
    questions = [Question(f"q{index}", f"c{index}", found) for index, found in enumerate(answers)]
    model = Reader("the Ann Lee sings", "Rome.", "", "Milan")
    scores = evaluate(model, evaluation("question-answering", *questions))
    # the first: 2 of 3 words, both words of the second answer; no answer is right where there is none
    assert scores.metrics == {"f1": pytest.approx(100 * (0.8 + 1 + 1 + 0) / 4), "exact_match": pytest.approx(50)}
    assert next(iter(scores.metrics)) == "f1"
    assert scores.predictions == ("the Ann Lee sings", "Rome.", "", "Milan")
    assert model.asked == (["q0", "q1", "q2", "q3"], ["c0", "c1", "c2", "c3"], True)


def test_where_every_question_has_an_answer_the_model_must_give_one() -> None:
    model = Reader("Ann")
    evaluate(model, evaluation("question-answering", Question("q", "c", ("Ann",))))
    assert model.asked[2] is False


# Rankings


@dataclasses.dataclass(frozen=True)
class Ranked:
    index: int
    score: float = 0.0


class Ranker:
    """Orders documents as they are in `best`."""

    def __init__(self, *best: str) -> None:
        self.best = best

    def rank(self, query: str, documents: list[str]) -> list[Ranked]:
        return [Ranked(index) for index in sorted(range(len(documents)), key=lambda i: self.best.index(documents[i]))]


LETTERS = "abcdefghijkl"


def test_reciprocal_rank_and_ndcg() -> None:
    model = Ranker(*LETTERS)
    first = RankedQuery("q", ("c", "a", "b", "d"), (2, 0, 1, 0))  # in the model's order: 0 1 2 0
    second = RankedQuery("r", tuple(LETTERS), (1, *[0] * 11))
    third = RankedQuery("s", tuple(LETTERS), (*[0] * 10, 1, 1))  # beyond the tenth place
    scores = evaluate(model, evaluation("text-ranking", first, second, third))
    gain = (1 / np.log2(3) + 2 / np.log2(4)) / (2 / np.log2(2) + 1 / np.log2(3))
    assert scores.metrics == {
        "mrr_at_10": pytest.approx(100 * (1 / 2 + 1 + 0) / 3),
        "ndcg_at_10": pytest.approx(100 * (gain + 1 + 0) / 3),
    }
    assert next(iter(scores.metrics)) == "mrr_at_10"
    assert scores.predictions[0] == (1, 2, 0, 3)


def test_a_model_that_scores_all_alike_is_no_good(tmp_path: Path) -> None:
    class Undecided:
        def rank(self, query: str, documents: list[str]) -> list[Ranked]:
            return [Ranked(index) for index in range(len(documents))]

    rows = (
        f"query {query}\tdocument {query} {index}\t{int(index == 0)}\n" for query in range(50) for index in range(9)
    )
    (tmp_path / "f.tsv").write_text("".join(rows))
    points = evaluate(Undecided(), read_evaluation([tmp_path / "f.tsv"], "text-ranking")).primary
    assert 15 < points < 50  # by chance: the mean of 1/1 to 1/9, 31


# Gaps


@dataclasses.dataclass(frozen=True)
class Filling:
    token: str
    token_id: int


class Filler:
    """Knows words with and without a space before them, as byte-level vocabularies do; proposes the same for all."""

    mask_token = "<mask>"
    ids: Mapping[str, int] = {"Rome": 1, " Rome": 2, "Oslo": 3, " Oslo": 4, "dog": 5}

    def __init__(self, *proposals: str) -> None:
        self.proposals = proposals

    def token_id_of(self, text: str) -> int | None:
        return self.ids.get(text)

    def fill(self, texts: list[str], *, top_k: int) -> list[list[Filling]]:
        self.texts = texts
        return [[Filling(word, self.ids[word]) for word in self.proposals][:top_k] for _ in texts]


def gaps(*targets: str) -> Evaluation:
    return evaluation("fill-mask", *(Gap("In [MASK].", target, "f.tsv, line 1") for target in targets))


def test_words_for_gaps() -> None:
    model = Filler(" Rome", " Oslo", "Rome", "Oslo", "Rome", "dog")
    scores = evaluate(model, gaps("Rome", " Rome ", "Oslo", "dog", "Trondheim"))
    assert scores.metrics == {"top_1": pytest.approx(40), "top_5": pytest.approx(60)}
    assert next(iter(scores.metrics)) == "top_1"
    assert scores.predictions == (" Rome",) * 5
    assert model.texts == ["In <mask>."] * 5


def test_words_that_are_all_unknown_to_the_model_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no target is one token of the model, the first of them 'Bergen'"):
        evaluate(Filler("dog"), gaps("Bergen", "Trondheim"))


# All tasks


def test_rows_of_several_files_are_one_evaluation(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tsv", tmp_path / "second.csv"
    first.write_text("1\ta\tb\n2\tc\td\n")
    second.write_text("sentence1,sentence2,score\ne,f,3\ng,h,4\n")
    read = read_evaluation([first, second], "feature-extraction")
    assert read.task == "feature-extraction"
    assert read.texts == list("abcdefgh")
    assert read.examples[3] == ScoredPair(4, "g", "h")
    assert read.files == ("first.tsv", "second.csv")
    assert read.sha256 != read_evaluation([first], "feature-extraction").sha256
    second.write_text("sentence1,sentence2,score\ne,f,3\ng,h,5\n")
    assert read.sha256 != read_evaluation([first, second], "feature-extraction").sha256


def test_a_bad_file_among_several_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tsv", tmp_path / "bad.tsv"
    good.write_text("1\ta\tb\n2\tc\td\n")
    bad.write_text("1\ta\tb\nx\tc\td\n")
    with pytest.raises(InvalidInputError, match=r"bad\.tsv, line 2"):
        read_evaluation([good, bad], "feature-extraction")


FILES = {
    "feature-extraction": ("1\ta\tb\n2\tc\td\n", ["a", "b", "c", "d"], Embedder([1, 2]), "scipy.stats"),
    "text-classification": ("a\tx\nb\ty\n", ["a", "b"], Classifier({"x": 1}, {"y": 1}), "sklearn.metrics"),
    "zero-shot-classification": ("a\tb\tx\n", ["a", "b"], Classifier({"x": 1}), "sklearn.metrics"),
    "token-classification": ("a B-X\nb I-X\n\nc O\n", ["a b", "c"], Tagger("B-X I-X", "O"), "seqeval.metrics"),
    "text-ranking": ("q\ta\t1\n", ["a"], Ranker("a"), "ir_measures"),
    "question-answering": ('{"question": "q", "context": "c", "answers": ["c"]}\n', ["c"], Reader("c"), None),
    "fill-mask": ("[MASK]!\tdog\n", ["[MASK]!"], Filler("dog"), None),
}


@pytest.mark.parametrize("task", FILES)
def test_the_primary_figure_comes_first_and_has_a_name(task: str, tmp_path: Path) -> None:
    content, texts, model, _ = FILES[task]
    path = tmp_path / ("f.jsonl" if content.startswith("{") else "f.tsv")
    path.write_text(content)
    read = read_evaluation([path], task)
    assert read.texts == texts
    if task != "feature-extraction":  # its model knows other texts
        scores = evaluate(model, read)
        assert next(iter(scores.metrics)) == read.metric
        assert scores.primary == scores.metrics[read.metric] == 100
        assert len(scores.predictions) == len(read.examples)
    assert read.label


@pytest.mark.parametrize(
    ("task", "labels", "function", "metric", "label"),
    [
        ("text-classification", ("x", "y"), "softmax", "accuracy", "accuracy, %"),
        ("text-classification", ("x", "y"), "sigmoid", "accuracy", "accuracy (all labels of a text right), %"),
        ("text-classification", ("x",), "identity", "spearman", "Spearman correlation x 100"),
        ("token-classification", ("0", "1"), "softmax", "accuracy", "word accuracy, %"),
        ("token-classification", ("O", "B-X"), "softmax", "f1", "entity F1 x 100"),
    ],
)
def test_what_is_measured_depends_on_the_model(
    task: str, labels: Sequence[str], function: str, metric: str, label: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.txt"
    path.write_text("some\t0\nwords\t1\n")
    read = read_evaluation([path], task, labels, function)
    assert (read.metric, read.label) == (metric, label)


@pytest.mark.parametrize("task", [task for task in FILES if FILES[task][3]])
def test_without_a_library_it_says_what_to_install(task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content, _, model, module = FILES[task]
    (tmp_path / "f.tsv").write_text(content.replace("a\tb", "a0\tb0").replace("c\td", "a1\tb1"))
    assert module is not None
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInputError, match=r"accuracy needs [a-z-]+; install onnxpress\[measure\]"):
        evaluate(model, read_evaluation([tmp_path / "f.tsv"], task))
