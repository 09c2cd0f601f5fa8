"""runtime/tables.py: texts from files as people have them, and errors that name the line."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.tables import TextLine, read_texts


def texts(data: str | bytes, form: str = "text", column: str = "text") -> list[TextLine]:
    raw = data.encode() if isinstance(data, str) else data
    return list(read_texts(io.BytesIO(raw), form, column))


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
