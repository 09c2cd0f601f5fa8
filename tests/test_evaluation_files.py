"""Evaluation files of every task: as people have them, and errors that name the file and the line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import TASKS, read_evaluation
from onnxpress.runtime.evaluation.feature_extraction import ScoredPair
from onnxpress.runtime.evaluation.fill_mask import Gap
from onnxpress.runtime.evaluation.question_answering import Question
from onnxpress.runtime.evaluation.text_classification import LabelledText
from onnxpress.runtime.evaluation.token_classification import TaggedSentence

A, B = ScoredPair(4.5, "a cat", "the cat"), ScoredPair(0.0, "a dog", "no cat")
SENTIMENT = ("negative", "positive")
NLI = ("entailment", "neutral", "contradiction")
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(folder: Path, content: str | bytes, name: str = "pairs.tsv") -> list[Any]:
    return list(read_evaluation([write(folder, name, content)], "feature-extraction").examples)


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# Scored pairs


SYNONYMS = [
    ("score", "sentence1", "sentence2"),
    ("label", "sentence_1", "sentence_2"),
    ("similarity_score", "sentence_A", "sentence_B"),
    ("relatedness_score", "sentence_A", "sentence_B"),
    ("gold", "text1", "text2"),
    ("Score", " First ", "SECOND"),
    ("similarity", "s1", "s2"),
]


@pytest.mark.parametrize("names", SYNONYMS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, names: Sequence[str], order: Sequence[int]) -> None:
    rows = [names, ("4.5", "a cat", "the cat"), ("0", "a dog", "no cat")]
    for delimiter, suffix in (("\t", "tsv"), (",", "csv"), ("\t", "txt")):
        content = "".join(delimiter.join(("x", *(row[index] for index in order))) + "\n" for row in rows)
        assert pairs(tmp_path, content, f"pairs.{suffix}") == [A, B]
    objects = [dict(zip(names, row, strict=True)) for row in rows[1:]]
    content = "".join(json.dumps({key: item[key] for key in reversed(item)}) + "\n" for item in objects)
    assert pairs(tmp_path, content, "pairs.jsonl") == [A, B]


@pytest.mark.parametrize(
    "content",
    [
        "4.5\ta cat\tthe cat\n0\ta dog\tno cat\n",
        "4.5\ta cat\tthe cat\tanything more\n\n0\ta dog\tno cat\n",
        "\ufeff4.5\ta cat\tthe cat\r\n0.0\ta dog\tno cat",
        "a cat\tthe cat\t4.5\na dog\tno cat\t0\n",
    ],
)
def test_a_table_without_a_header_is_score_and_sentences_or_the_other_way(tmp_path: Path, content: str) -> None:
    assert pairs(tmp_path, content) == [A, B]


def test_quotation_marks_are_plain_characters_in_tsv_and_quotes_in_csv(tmp_path: Path) -> None:
    found = pairs(tmp_path, '1\t"Unclosed, he said\tb\n2\t"c"\td\n')
    assert found == [ScoredPair(1, '"Unclosed, he said', "b"), ScoredPair(2, '"c"', "d")]
    found = pairs(tmp_path, 'score,sentence1,sentence2\n1,"Yes, ""sir""",b\n2,c,"d"\n', "pairs.csv")
    assert found == [ScoredPair(1, 'Yes, "sir"', "b"), ScoredPair(2, "c", "d")]


def test_a_csv_cell_may_hold_a_line_end(tmp_path: Path) -> None:
    found = pairs(tmp_path, 'score,sentence1,sentence2\n1,"first\nsecond",b\n2,c,d\n', "pairs.csv")
    assert found == [ScoredPair(1, "first\nsecond", "b"), ScoredPair(2, "c", "d")]


def test_only_line_ends_end_a_row(tmp_path: Path) -> None:
    """Public data has these characters inside sentences."""
    for character in ("\u2028", "\x85", "\x0b", "\x0c", "\x1c"):
        found = pairs(tmp_path, f"1\ta{character}a\tb\n2\tc\td\n")
        assert found == [ScoredPair(1, f"a{character}a", "b"), ScoredPair(2, "c", "d")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.tsv", "1\ta\tb\n2\tc\n", r"line 2: 2 columns where 3 are needed"),
        ("p.tsv", "1\ta\tb\n\n\nhigh\tc\td\n", r"line 4: the score 'high' is not a number"),
        ("p.tsv", "1\ta\tb\nnan\tc\td\n", r"line 2: the score 'nan' is not a number"),
        ("p.tsv", "a\tb\nc\td\n", r"line 1: expected a header .* found 2 columns beginning with 'a'"),
        ("p.tsv", "x\ty\tz\n1\ta\tb\n", r"line 1: expected a header"),
        ("p.csv", "score,sentence1,sentence2\n1,a,b\n,c,d\n", r"line 3: the score '' is not a number"),
        ("p.csv", 'score,sentence1,sentence2\n1,"a\na",b\nx,c,d\n', r"line 4: the score 'x' is not a number"),
        ("p.csv", f"1,a,b\n2,{'x' * 200_000},d\n", r"line 2: field larger"),
        ("p.jsonl", '{"score": 1, "s1": "a", "s2": "b"}\n{"score": 2', r"line 2: not JSON"),
        ("p.jsonl", '{"score": 1, "s1": "a"}\n', r"line 1: expected an object with the keys score"),
        ("p.jsonl", "[1]\n", r"line 1: expected an object"),
        ("p.jsonl", '\n{"score": 1, "s1": 2, "s2": "b"}\n', r"line 2: the sentences must be text"),
        ("p.jsonl", '{"score": true, "s1": "a", "s2": "b"}\n', r"line 1: the score True is not a number"),
        ("p.jsonl", '{"score": null, "s1": "a", "s2": "b"}\n', r"line 1: the score None is not a number"),
        ("p.tsv", b"1\ta\tb\n2\tc\xff\td\n", r"line 2: not UTF-8 text"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        pairs(tmp_path, content, name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no scored pairs"),
        ("score\tsentence1\tsentence2\n", "has no scored pairs"),
        ("1\ta\tb\n", "gives 1 pairs; a correlation needs at least 2"),
        ("1\ta\tb\n1.0\tc\td\n", "have the same score"),
    ],
)
def test_too_little_to_correlate_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        pairs(tmp_path, content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.tsv cannot be read: No such file"):
        read_evaluation([tmp_path / "none.tsv"], "feature-extraction")


# Classification


def classified(
    folder: Path, content: str, name: str = "f.tsv", labels: Sequence[str] = SENTIMENT, function: str = "softmax"
) -> list[Any]:
    return list(read_evaluation([write(folder, name, content)], "text-classification", labels, function).examples)


GOOD, BAD = LabelledText("good", None, "positive"), LabelledText("bad", None, "negative")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.tsv", "good\t1\nbad\t0\n"),
        ("f.tsv", "\ufeffgood\tpositive\r\n\r\nbad\tNegative"),
        ("f.txt", "text\tlabel\ngood\t1\nbad\t0\n"),
        ("f.csv", "label,id,sentence\n1,x,good\n0,y,bad\n"),
        ("f.csv", 'Text,Sentiment\n"good",POSITIVE\nbad,"negative"\n'),
        ("f.jsonl", '{"sentence": "good", "idx": 0, "label": 1}\n{"label": "negative", "sentence": "bad"}\n'),
        ("f.jsonl", '{"text": "good", "label": 1.0}\n{"text": "bad", "text_pair": null, "label": "0"}\n'),
        ("f.tsv", "review\tlabel\ngood\t1\nno idea\t-1\nbad\t0\n"),
    ],
)
def test_labelled_texts(tmp_path: Path, name: str, content: str) -> None:
    assert classified(tmp_path, content, name) == [GOOD, BAD]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("premise", "hypothesis"),
        ("sentence1", "sentence2"),
        ("question", "sentence"),
        ("question1", "question2"),
        ("text", "text_pair"),
        ("text", "hypothesis"),
    ],
)
def test_pairs_are_found_by_the_names_that_go_together(tmp_path: Path, first: str, second: str) -> None:
    content = f"label\t{second}\t{first}\nneutral\tthe second\tthe first\n"
    assert classified(tmp_path, content, labels=NLI) == [LabelledText("the first", "the second", "neutral")]


def test_pairs_without_a_header_and_what_the_annotators_could_not_decide(tmp_path: Path) -> None:
    content = "a man sleeps\ta man rests\tentailment\na man sleeps\ta dog runs\t-\na\tb\t2\n"
    found = classified(tmp_path, content, labels=NLI)
    assert found == [LabelledText("a man sleeps", "a man rests", "entailment"), LabelledText("a", "b", "contradiction")]
    both = json_lines({"sentence1": "a", "sentence2": "b", "gold_label": "neutral", "annotator_labels": ["neutral"]})
    assert classified(tmp_path, both, "f.jsonl", NLI) == [LabelledText("a", "b", "neutral")]


def test_a_label_is_looked_for_by_name_before_it_is_an_index(tmp_path: Path) -> None:
    found = classified(tmp_path, "good\t1\nbad\t2\nworse\t0\n", labels=("2", "1", "x"))
    assert [example.gold for example in found] == ["1", "2", "2"]


def test_case_counts_where_labels_differ_in_nothing_else(tmp_path: Path) -> None:
    labels = ("us", "US", "them")
    assert [row.gold for row in classified(tmp_path, "a\tUS\nb\tus\nc\tTHEM\n", labels=labels)] == ["US", "us", "them"]
    with pytest.raises(InvalidInputError, match="no label 'Us'"):
        classified(tmp_path, "a\tUs\n", labels=labels)


@pytest.mark.parametrize("label", ["2", "-2", "great", "", "1.5", "9999999999"])
def test_a_label_the_model_does_not_have_is_refused_with_those_it_has(tmp_path: Path, label: str) -> None:
    message = rf"f\.tsv, line 3: the model has no label '{label}'; it has: negative, positive \(give a name, or an"
    with pytest.raises(InvalidInputError, match=message):
        classified(tmp_path, f"text\tlabel\ngood\t1\nbad\t{label}\n")


def test_of_many_labels_only_some_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"label49, \.\.\. \(500 in all\)") as caught:
        classified(tmp_path, "good\t1\nbad\tx\n", labels=[f"label{index}" for index in range(500)])
    assert "label50" not in str(caught.value)


@pytest.mark.parametrize("function", ["identity", "sigmoid"])
def test_a_model_with_one_label_is_evaluated_on_numbers(tmp_path: Path, function: str) -> None:
    expected = [LabelledText("a", "b", 4.5), LabelledText("c", "d", 0.0)]
    for content in (
        "4.5\ta\tb\n0\tc\td\n",
        "a\tb\t4.5\nc\td\t0\n",
        "score\tsentence1\tsentence2\n4.5\ta\tb\n0\tc\td\n",
    ):
        assert classified(tmp_path, content, labels=("LABEL_0",), function=function) == expected
    for content, message in (
        ("a\t1\nb\thigh\n", "line 2: the label 'high' is not a number"),
        ("a\t1\nb\tnan\n", "line 2: the label 'nan' is not a number"),
        ("a\t1\nb\t1.0\n", "have the same number"),
        ("a\tgood\n", "line 1: expected a header"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            classified(tmp_path, content, labels=("LABEL_0",), function=function)


def test_a_model_with_several_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="predicts 2 numbers"):
        classified(tmp_path, "a\t1\n", function="identity")


def test_several_labels_of_a_text(tmp_path: Path) -> None:
    labels = ("joy", "anger", "fear")
    content = 'a\tfear| JOY\nb\tanger\nc\t["anger", 0]\nd\t\ne\t[]\nf\t2|2\n'
    expected = [("joy", "fear"), ("anger",), ("joy", "anger"), (), (), ("fear",)]
    assert [row.gold for row in classified(tmp_path, content, labels=labels, function="sigmoid")] == expected
    rows = [{"text": "a", "labels": value} for value in (["fear", "joy"], 1, [1, 0], [], "", "fear")]
    content = json_lines(*rows)
    assert [row.gold for row in classified(tmp_path, content, "f.jsonl", labels, "sigmoid")] == expected
    with pytest.raises(InvalidInputError, match="line 2: the model has no label 'hate'"):
        classified(tmp_path, "a\tjoy\nb\tfear|hate\n", labels=labels, function="sigmoid")
    with pytest.raises(InvalidInputError, match=r"line 1: the labels '\[joy' are no JSON list"):
        classified(tmp_path, "a\t[joy\n", labels=labels, function="sigmoid")
    with pytest.raises(InvalidInputError, match="has a label"):
        classified(tmp_path, "a\t\n", labels=labels, function="sigmoid")


def test_without_labels_those_of_the_file_are_taken(tmp_path: Path) -> None:
    assert classified(tmp_path, "good\tYes\n", labels=()) == [LabelledText("good", None, "Yes")]
    with pytest.raises(InvalidInputError, match="line 1: 3 is no label's name"):
        classified(tmp_path, '{"text": "good", "label": 3}\n', "f.jsonl", labels=())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.tsv", "", "has no labelled texts"),
        ("f.tsv", "good\t-1\n", "has no labelled texts"),
        ("f.tsv", "good\n", r"line 1: expected a header with text and label .* found 1 columns beginning with 'good'"),
        ("f.tsv", "a\tb\t1\nc\t1\n", r"line 2: 2 columns where 3 are needed \(text, label or text, text, label\)"),
        ("f.tsv", "good\t1\n \t0\n", "line 2: the text is empty"),
        ("f.csv", "text,label\n\nx,1\n,0\n", "line 4: the text is empty"),
        ("f.jsonl", '{"text": "a", "label": 1}\n{"text": 7, "label": 1}\n', "line 2: the text must be text, not 7"),
        ("f.jsonl", '{"text": "a", "label": [1]}\n', r"line 1: the model has no label a list"),
        ("f.jsonl", '{"text": "a", "label": true}\n', r"line 1: the model has no label True"),
        ("f.jsonl", '{"text": "a"}\n', "line 1: expected an object with the keys text and label"),
        ("f.jsonl", "[1]\n", "line 1: expected an object with the keys text and label"),
    ],
)
def test_classification_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        classified(tmp_path, content, name)


# Tokens


def tagged(folder: Path, content: str, name: str = "f.conll", labels: Sequence[str] = ENTITIES) -> list[Any]:
    return list(read_evaluation([write(folder, name, content)], "token-classification", labels).examples)


TAGGED = [TaggedSentence(("Ann", "sings"), ("B-PER", "O")), TaggedSentence(("Rome",), ("B-LOC",))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.conll", "Ann B-PER\nsings O\n\nRome B-LOC\n"),
        ("f.bio", "\ufeff\n\nAnn\tB-PER\r\nsings\tO\r\n\r\n\t\r\nRome\tb-loc"),
        (
            "f.txt",
            "-DOCSTART- -X- -X- O\n\nAnn NNP B-NP B-PER\nsings VBZ  B-VP O\n\n-DOCSTART- O\n\nRome NNP B-NP B-LOC\n",
        ),
        ("f.jsonl", json_lines({"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}, {"words": ["Rome"], "tags": [3]})),
    ],
)
def test_tagged_sentences(tmp_path: Path, name: str, content: str) -> None:
    assert tagged(tmp_path, content, name) == TAGGED


def test_tags_by_index_and_empty_sentences(tmp_path: Path) -> None:
    rows = [{"id": 1, "tokens": ["Ann", "sings"], "ner_tags": [1, 0]}, {"tokens": [], "tags": []}]
    content = json_lines(*rows, {"tokens": ["Rome"], "labels": ["3"]})
    assert tagged(tmp_path, content, "f.jsonl") == TAGGED


def test_only_blanks_and_tabs_part_words_and_tags(tmp_path: Path) -> None:
    found = tagged(tmp_path, "a\u2028b\xa0c O\nNew York\tx\tB-LOC\n# O\n")
    assert found == [TaggedSentence(("a\u2028b\xa0c", "New York", "#"), ("O", "B-LOC", "O"))]


def test_a_tag_in_another_scheme_fits_a_type_the_model_has(tmp_path: Path) -> None:
    content = "New B-LOC\nYork I-LOC\nis O\n"
    for labels in (("O", "I-LOC"), ("LOC", "PER"), ("O", "S-LOC", "E-LOC")):
        assert tagged(tmp_path, content, labels=labels) == [
            TaggedSentence(("New", "York", "is"), ("B-LOC", "I-LOC", "O"))
        ]
    with pytest.raises(InvalidInputError, match=r"line 1: the model has no label 'B-LOC'; it has: O, I-PLACE"):
        tagged(tmp_path, content, labels=("O", "I-PLACE"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.conll", "", "has no sentences"),
        ("f.conll", "-DOCSTART- O\n\n", "has no sentences"),
        ("f.conll", "Ann O\nsings O\n", "have the tag O"),
        ("f.conll", "Ann B-PER\nsings\n", "line 2: expected a word and its tag, found 'sings'"),
        ("f.conll", "Ann B-PER\n\tO\n", "line 2: expected a word and its tag"),
        ("f.conll", "Ann B-PER\nsings B-VERB\n", "line 2: the model has no label 'B-VERB'; it has: O, B-PER"),
        ("f.jsonl", '{"tokens": ["a"], "tags": []}\n', "line 1: 1 tokens and 0 tags"),
        ("f.jsonl", '{"tokens": ["a"], "tags": "O"}\n', "line 1: 1 tokens and no list of tags"),
        ("f.jsonl", '{"tokens": "a", "tags": ["O"]}\n', "line 1: tokens must be a list of texts, not 'a'"),
        ("f.jsonl", '{"tokens": ["a", " "], "tags": [0, 0]}\n', "line 1: item 1 of tokens is empty"),
        ("f.jsonl", '{"tokens": ["a"], "tags": [5]}\n', "line 1: the model has no label 5"),
        ("f.jsonl", '{"text": ["a"], "tags": [5]}\n', "line 1: expected an object with the keys tokens and tags"),
    ],
)
def test_tag_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tagged(tmp_path, content, name)


# Questions


def questions(folder: Path, content: str, name: str = "f.jsonl") -> list[Any]:
    return list(read_evaluation([write(folder, name, content)], "question-answering").examples)


ASKED = [
    Question("Who sings?", "Ann sings.", ("Ann", "Ann sings")),
    Question("Who dances?", "Ann sings.", ()),
    Question("Where?", "In Rome.", ("Rome",)),
]


def squad(version: str) -> dict[str, Any]:
    first = {
        "context": "Ann sings.",
        "qas": [
            {
                "id": "1",
                "question": "Who sings?",
                "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann sings"}],
            },
            {"question": "Who dances?", "answers": [], "plausible_answers": [{"text": "Ann"}], "is_impossible": True},
        ],
    }
    second = {"context": "In Rome.", "qas": [{"question": "Where?", "answers": [{"text": "Rome"}]}]}
    return {"version": version, "data": [{"title": "t", "paragraphs": [first]}, {"paragraphs": [second]}]}


ROWS = [
    {
        "question": "Who sings?",
        "context": "Ann sings.",
        "answers": {"text": ["Ann", "Ann sings"], "answer_start": [0, 0]},
    },
    {"question": "Who dances?", "context": "Ann sings.", "answers": []},
    {"question": "Where?", "context": "In Rome.", "answers": ["Rome", "the"], "id": 3},
]


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_as_it_is_published(tmp_path: Path, indent: int | None) -> None:
    assert questions(tmp_path, "\n" + json.dumps(squad("v2.0"), indent=indent) + "\n", "dev-v2.0.json") == ASKED


@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_questions_as_lines(tmp_path: Path, name: str) -> None:
    """`the` is an article, so nothing is left of that answer, and it does not count."""
    assert questions(tmp_path, json_lines(*ROWS), name) == ASKED
    assert questions(tmp_path, json_lines(ROWS[1]), name) == ASKED[1:2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.tsv", "q\tc\ta\n", r"f\.tsv: questions are read from \.jsonl"),
        ("f.jsonl", "", "has no questions"),
        ("f.json", " \n", "has no questions"),
        ("f.json", '{"data": [\n{"paragraphs": [}\n', "line 2: not JSON"),
        ("f.json", '{"data": []}', "has no questions"),
        ("f.json", '{"data": {}}', "data must be a list"),
        ("f.json", '{"data": [7]}', r"data\[0\] must be an object"),
        ("f.json", '{"data": [{"paragraphs": [{"context": "c"}]}]}', r"data\[0\]\.paragraphs\[0\]\.qas must be a list"),
        (
            "f.json",
            '{"data": [{"paragraphs": [{"qas": [{"question": "q", "answers": []}]}]}]}',
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: the context must be text, not None",
        ),
        ("f.json", json_lines(ROWS[0]) + "{", "line 2: not JSON"),
        ("f.jsonl", json_lines(ROWS[0]) + "{", "line 2: not JSON"),
        ("f.jsonl", json_lines({"question": "q", "context": "c"}), "line 1: expected an object with the keys question"),
        ("f.jsonl", json_lines({"question": "q", "context": "c", "answers": None}), "answers must be a list of texts"),
        (
            "f.jsonl",
            json_lines({"question": "q", "context": "c", "answers": "Rome"}),
            "answers must be a list of texts",
        ),
        ("f.jsonl", json_lines({"question": "q", "context": "c", "answers": [7]}), "an answer must be text, not 7"),
        ("f.jsonl", json_lines({"question": "", "context": "c", "answers": []}), "line 1: the question is empty"),
    ],
)
def test_question_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        questions(tmp_path, content, name)


# Rankings


def rankings(folder: Path, content: str, name: str = "f.jsonl") -> list[tuple[str, dict[str, int]]]:
    evaluation = read_evaluation([write(folder, name, content)], "text-ranking")
    examples: Sequence[Any] = evaluation.examples
    return [(item.query, dict(zip(item.documents, item.relevance, strict=True))) for item in examples]


RANKED = [("boil an egg", {"ten minutes": 1, "hens": 0, "roast": 0}), ("capital city", {"Rome": 1})]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "f.jsonl",
            json_lines(
                {"query": "boil an egg", "positive": ["ten minutes"], "negative": ["hens", "roast"]},
                {"query": "capital city", "positive": "Rome", "negative": []},
            ),
        ),
        (
            "f.tsv",
            "boil an egg\tten minutes\t1\ncapital city\tRome\t1\nboil an egg\thens\t0\n\nboil an egg\troast\t0.0\n",
        ),
        (
            "f.csv",
            "doc,rel,query\nhens,0,boil an egg\nRome,1,capital city\nten minutes,1,boil an egg\nroast,0,boil an egg",
        ),
    ],
)
def test_rankings(tmp_path: Path, name: str, content: str) -> None:
    assert rankings(tmp_path, content, name) == RANKED


def test_relevance_may_have_grades(tmp_path: Path) -> None:
    assert rankings(tmp_path, "q\ta\t0\nq\tb\t3\n", "f.tsv") == [("q", {"a": 0, "b": 3})]


def test_the_order_of_the_file_says_nothing_about_the_order_of_the_documents(tmp_path: Path) -> None:
    documents = [f"document {index}" for index in range(20)]
    first = json_lines({"query": "q", "positive": documents[:10], "negative": documents[10:]})
    last = "".join(f"q\t{text}\t{int(text in documents[:10])}\n" for text in reversed(documents))
    (one,) = read_evaluation([write(tmp_path, "f.jsonl", first)], "text-ranking").examples
    (other,) = read_evaluation([write(tmp_path, "f.tsv", last)], "text-ranking").examples
    assert one == other
    assert one.texts not in (tuple(documents), tuple(reversed(documents)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.tsv", "", "has no queries"),
        ("f.tsv", "q\ta\n", "line 1: expected a header with query, document and relevance"),
        ("f.tsv", "q\ta\t1\nq\tb\thigh\n", "line 2: the relevance 'high' is not a whole number of at least 0"),
        ("f.tsv", "q\ta\t1\nq\tb\t-1\n", "line 2: the relevance '-1' is not"),
        ("f.tsv", "q\ta\t0.5\n", "line 1: the relevance '0.5' is not"),
        ("f.tsv", "q\ta\t1\nr\tb\t0\nr\tc\t0\n", "line 2: the query 'r' has no relevant document"),
        ("f.jsonl", json_lines({"query": "q", "positive": [], "negative": ["a"]}), "line 1: .* no relevant document"),
        (
            "f.jsonl",
            json_lines({"query": "q", "positive": ["a", 7], "negative": []}),
            "a positive document must be text",
        ),
        ("f.jsonl", json_lines({"query": "q", "positive": ["a"]}), "line 1: expected an object with the keys query"),
        ("f.jsonl", json_lines({"query": " ", "positive": ["a"], "negative": []}), "line 1: the query is empty"),
    ],
)
def test_ranking_files_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        rankings(tmp_path, content, name)


# Gaps


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.tsv", "[MASK] is cold.\tIce\nA <mask>.\tdog\n"),
        ("f.csv", 'target,text\nIce,"[MASK] is cold."\n"dog",A <mask>.\n'),
        (
            "f.jsonl",
            '{"text": "[MASK] is cold.", "target": "Ice"}\n{"masked_sentence": "A <mask>.", "obj_label": "dog"}\n',
        ),
    ],
)
def test_texts_with_a_gap(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    found: Sequence[Any] = read_evaluation([path], "fill-mask").examples
    assert [(gap.text, gap.target) for gap in found] == [("[MASK] is cold.", "Ice"), ("A <mask>.", "dog")]
    assert [gap.masked("<MASK>") for gap in found] == ["<MASK> is cold.", "A <MASK>."]


def test_a_gap_as_the_model_writes_it() -> None:
    assert Gap("A ___ barks. [MASK]", "dog", "f, line 1").masked("___") == "A ___ barks. [MASK]"
    with pytest.raises(InvalidInputError, match=r"f, line 1: the text has no gaps; give one, as ___ or \[MASK\]"):
        Gap("A dog barks.", "dog", "f, line 1").masked("___")
    with pytest.raises(InvalidInputError, match="the text has 2 gaps"):
        Gap("A ___ ___.", "dog", "f, line 1").masked("___")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no texts"),
        ("text\ttarget\nA [MASK] [MASK].\tdog\n", "line 2: the text has 2 gaps; give one"),
        ("A [MASK] or <mask>.\tdog\n", "line 1: the text has 2 gaps; give one"),
        ("A [MASK].\t\n", "line 1: the target is empty"),
        ("A [MASK].\n", "line 1: expected a header with text and target"),
    ],
)
def test_gap_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_evaluation([write(tmp_path, "f.tsv", content)], "fill-mask")


# All tasks

KEYS = ("text", "label", "labels", "tokens", "tags", "query", "positive", "negative", "question", "context", "answers")
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(("O", "[MASK]")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.lists(st.text(max_size=4) | st.sampled_from(KEYS), max_size=4).map("\t".join), max_size=4).map(
        lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass")
    ),
    st.lists(st.dictionaries(st.sampled_from((*KEYS, "target", "score", "data")), CELLS, max_size=5), max_size=3).map(
        lambda rows: json_lines(*rows).encode()
    ),
)


@given(
    CONTENTS,
    st.sampled_from(["tsv", "csv", "jsonl", "json", "txt", "conll"]),
    st.sampled_from(list(TASKS)),
    st.sampled_from([(), ("only",), ("O", "b")]),
    st.sampled_from(["softmax", "sigmoid", "identity"]),
)
def test_any_bytes_are_examples_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    suffix: str,
    task: str,
    labels: tuple[str, ...],
    function: str,
) -> None:
    path = write(tmp_path_factory.getbasetemp(), f"fuzz.{suffix}", data)
    with contextlib.suppress(InvalidInputError):
        evaluation = read_evaluation([path], task, labels, function)
        assert evaluation.examples
        assert all(isinstance(text, str) for text in evaluation.texts)


def test_deep_and_huge_json_is_refused(tmp_path: Path) -> None:
    deep, huge = "[" * 100_000, "9" * 400
    for task in set(TASKS) - {"text-generation"}:  # which reads plain text
        for content in (f'{{"text": {deep}', f'{{"score": {huge}, "s1": "a", "s2": "b"}}'):
            with pytest.raises(InvalidInputError, match=r"line 1|json: "):
                read_evaluation([write(tmp_path, "f.json", content)], task, SENTIMENT)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for task in TASKS:
        for name in ("none.jsonl", "none.tsv"):
            with pytest.raises(InvalidInputError, match=rf"{name}( cannot be read: No such file|: questions are read)"):
                read_evaluation([tmp_path / name], task)
        with pytest.raises(InvalidInputError, match=r"latin\.json, line 2: not UTF-8"):
            read_evaluation([write(tmp_path, "latin.json", b'{"x": 1}\n"\xe9"')], task)


def test_a_task_without_evaluation_and_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"task 'summarization'; it can for: feature-extraction, "):
        read_evaluation([tmp_path / "f.tsv"], "summarization")
    with pytest.raises(InvalidInputError, match="no evaluation files"):
        read_evaluation([], "fill-mask")


@pytest.mark.parametrize(
    ("content", "message"), [("", "no text of at least two words"), ("word\n", "no text of at least two words")]
)
def test_a_text_without_words_to_predict_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "text.txt").write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        read_evaluation([tmp_path / "text.txt"], "text-generation")


def test_a_text_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line of some length\n\ntwo\n")
    evaluation = read_evaluation([tmp_path / "text.txt"], "text-generation")
    assert evaluation.metric == "perplexity"
    assert evaluation.texts == ["one line of some length"]
    assert evaluation.loss(100.0, 101.0) == pytest.approx(1.0)
