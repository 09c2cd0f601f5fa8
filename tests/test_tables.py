"""runtime/tables.py: texts and scored pairs from files as people have them, and errors that name the line."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.tables import ScoredPair, TextLine, read_scored_pairs, read_texts

A, B = ScoredPair(4.5, "a cat", "the cat"), ScoredPair(0.0, "a dog", "no cat")


def texts(data: str | bytes, form: str = "text", column: str = "text") -> list[TextLine]:
    raw = data.encode() if isinstance(data, str) else data
    return list(read_texts(io.BytesIO(raw), form, column))


def pairs(folder: Path, content: str | bytes, name: str = "pairs.tsv") -> list[ScoredPair]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_scored_pairs(path)


# Texts


def test_each_line_is_a_text() -> None:
    assert texts("one\n two \r\nthree") == [TextLine(1, "one"), TextLine(2, " two "), TextLine(3, "three")]


def test_no_lines_are_no_texts() -> None:
    assert texts("") == []
    assert texts("text\n", "csv") == []


def test_a_byte_order_mark_is_no_text() -> None:
    assert texts(b"\xef\xbb\xbfone\n") == [TextLine(1, "one")]
    assert texts(b"\xef\xbb\xbftext,x\none,2\n", "csv") == [TextLine(2, "one")]
    assert texts(b'\xef\xbb\xbf{"text": "one"}\n', "jsonl") == [TextLine(1, "one")]


def test_characters_that_some_take_for_line_ends_stay_in_the_text() -> None:
    assert texts("one\u2028still one\x0bone\x85one\n") == [TextLine(1, "one\u2028still one\x0bone\x85one")]


def test_a_line_that_is_not_utf_8_is_reported_and_the_others_are_read() -> None:
    assert texts(b"good\nb\xff\xfed\n\ngood again") == [
        TextLine(1, "good"),
        TextLine(2, None, "not UTF-8 (byte 1)"),
        TextLine(3, None, "the text is empty"),
        TextLine(4, "good again"),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "one", "id": 7}', TextLine(1, "one")),
        ('"one"', TextLine(1, "one")),
        ('{"text": "caf\\u00e9\\n"}', TextLine(1, "café\n")),
        ('{"text": ""}', TextLine(1, None, "the text is empty")),
        ('{"text": 5}', TextLine(1, None, "no text under the key 'text'")),
        ('{"words": "one"}', TextLine(1, None, "no text under the key 'text'")),
        ("[1]", TextLine(1, None, "no text under the key 'text'")),
        ("null", TextLine(1, None, "no text under the key 'text'")),
    ],
)
def test_json_lines(line: str, expected: TextLine) -> None:
    assert texts(line + "\n", "jsonl") == [expected]


@pytest.mark.parametrize("line", ["{", "", "{'text': 'one'}", "[" * 100_000])
def test_a_line_that_is_not_json_is_reported(line: str) -> None:
    (bad, good) = texts(f'{line}\n{{"text": "one"}}\n', "jsonl")
    assert bad.number == 1
    assert bad.text is None
    assert bad.error is not None
    assert bad.error.startswith("not JSON (")
    assert len(bad.error) < 200
    assert good == TextLine(2, "one")


def test_the_column_can_be_chosen() -> None:
    assert texts('{"words": "one"}\n', "jsonl", "words") == [TextLine(1, "one")]
    assert texts("id,words\n7,one\n", "csv", "words") == [TextLine(2, "one")]


def test_csv_quotes_commas_and_line_ends_inside_cells() -> None:
    found = texts('id,text\r\n1,"one, ""two"""\r\n\r\n2,"first\nsecond"\r\n3,last\r\n', "csv")
    assert found == [TextLine(2, 'one, "two"'), TextLine(5, "first\nsecond"), TextLine(6, "last")]


def test_tsv_has_tabs() -> None:
    assert texts("id\ttext\n1\tone, two\n", "tsv") == [TextLine(2, "one, two")]


def test_bad_rows_of_a_table_are_reported_and_the_others_are_read() -> None:
    found = texts(b"id,text\n1\n2,\xff\n3,  \n\xff,good\n", "csv")
    assert found == [
        TextLine(2, None, "has 1 columns, 'text' is column 2"),
        TextLine(3, None, "not UTF-8"),
        TextLine(4, None, "the text is empty"),
        TextLine(5, "good"),
    ]


@pytest.mark.parametrize("content", ["", "id,words\n1,one\n"])
def test_a_table_without_the_column_is_refused(content: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"no column 'text'; it has: (nothing|id, words) \(choose with --column\)"
    ):
        texts(content, "csv")


def test_a_cell_larger_than_the_csv_reader_takes_is_reported() -> None:
    found = texts(f"text\n{'x' * 200_000}\ngood\n", "csv")
    assert [line.number for line in found] == [2, 3]
    assert found[1] == TextLine(3, "good")


@given(st.binary(max_size=60), st.sampled_from(["text", "jsonl", "csv", "tsv"]))
def test_any_bytes_are_texts_or_reasons(data: bytes, form: str) -> None:
    lines = b"text\n" + data if form in ("csv", "tsv") else data
    for line in texts(lines, form):
        assert (line.text is None) != (line.error is None)


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
        ("", "has 0 pairs"),
        ("score\tsentence1\tsentence2\n", "has 0 pairs"),
        ("1\ta\tb\n", "has 1 pairs; a correlation needs at least 2"),
        ("1\ta\tb\n1.0\tc\td\n", "have the same score"),
    ],
)
def test_too_little_to_correlate_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        pairs(tmp_path, content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.tsv cannot be read: No such file"):
        read_scored_pairs(tmp_path / "none.tsv")
    with pytest.raises(InvalidInputError, match="cannot be read: Is a directory"):
        read_scored_pairs(tmp_path)


@given(st.binary(max_size=60), st.sampled_from(["tsv", "csv", "jsonl", "txt"]))
def test_any_bytes_are_pairs_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    path.write_bytes(data)
    with contextlib.suppress(InvalidInputError):
        assert len(read_scored_pairs(path)) >= 2
