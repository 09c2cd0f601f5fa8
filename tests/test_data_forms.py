"""The forms of evaluation data beside single files, the options that say how it is read, and streams of any length."""

from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from onnxpress.runtime.data.options import DataOptions, parse_mapping
from onnxpress.runtime.data.sampling import sample, sample_groups
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import Evaluation, read_evaluation
from onnxpress.runtime.evaluation.text_classification import LabelledText

SENTIMENT = ("negative", "positive")
GOOD, BAD = LabelledText("good", None, "positive"), LabelledText("bad", None, "negative")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, task: str = "text-classification", **options: Any) -> Evaluation:
    labels = SENTIMENT if "classification" in task else ()
    return read_evaluation([path], task, labels, "softmax", DataOptions(**options))


def examples(path: Path, task: str = "text-classification", **options: Any) -> list[Any]:
    return list(read(path, task, **options).examples)


def tagged(path: Path, options: DataOptions = DataOptions()) -> list[Any]:
    return list(read_evaluation([path], "token-classification", ("O", "B-PER"), options=options).examples)


# Columns and labels by option


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("f.csv", "id,text,Review,stars\n7,other,good,1\n8,other,bad,0\n"),
        ("f.tsv", "stars\tgold_label\treview\n1\tx\tgood\n0\tx\tbad\n"),
        ("f.jsonl", '{"review": "good", "text": "other", "stars": 1}\n{"stars": 0, "review": "bad"}\n'),
    ],
)
def test_columns_that_are_named_go_before_the_usual_ones(tmp_path: Path, name: str, content: str) -> None:
    found = examples(write(tmp_path / name, content), columns={"text": "review", "label": "stars"})
    assert found == [GOOD, BAD]


def test_what_is_not_named_is_found_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "label,body,hypothesis\n1,good,x\n")
    assert examples(path, columns={"text": "body"}) == [LabelledText("good", "x", "positive")]
    path = write(tmp_path / "g.csv", "label,body,document\n1,good,x\n")
    assert examples(path, columns={"text": "body"}) == [GOOD]


@pytest.mark.parametrize(
    ("task", "columns", "row", "expected"),
    [
        ("feature-extraction", {"score": "y", "sentence1": "a", "sentence2": "b"}, {"y": 1, "a": "p", "b": "q"}, "p"),
        ("zero-shot-classification", {"premise": "a", "hypothesis": "b"}, {"a": "p", "b": "q", "label": 1}, "p"),
        ("token-classification", {"tokens": "a", "tags": "b"}, {"a": ["p"], "b": [1]}, "p"),
        ("question-answering", {"question": "a", "context": "b"}, {"a": "p", "b": "q", "answers": []}, "q"),
        ("text-ranking", {"document": "b", "relevance": "y"}, {"query": "p", "b": "q", "y": 1}, "q"),
        ("text-ranking", {"positive": "b"}, {"query": "p", "b": ["q"], "negative": []}, "q"),
        ("fill-mask", {"text": "a", "target": "b"}, {"a": "[MASK]", "b": "q"}, "[MASK]"),
        (
            "text-generation",
            {"text": "a"},
            {"a": "some words of one line"},
            "some words of one line",
        ),
    ],
)
def test_every_task_takes_names_of_columns(
    tmp_path: Path, task: str, columns: dict[str, str], row: dict[str, Any], expected: str
) -> None:
    rows = [row, {**row, "y": 2}]
    path = write(tmp_path / "f.jsonl", "".join(json.dumps(item) + "\n" for item in rows))
    found = read(path, task, columns=columns)
    assert found.texts[0] == expected
    assert [text for item in found.examples[0].inputs for text in item if text == expected]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "body"}, r"f\.csv, line 1: no column 'body', which is to be text; there are: text, review, label"),
        ({"texts": "review"}, "'texts' is no column of text-classification, which has: text, text_pair, label"),
        ({"text": "review", "label": "review"}, "the column 'review' is given for text and for label"),
        ({"text_pair": "label"}, r"line 1: text and label .* are needed; text_pair=label alone is not enough"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_with_what_there_is(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    path = write(tmp_path / "f.csv", "text,review,label\ngood,x,1\n")
    with pytest.raises(InvalidInputError, match=message):
        read(path, columns=columns)


def test_a_column_that_occurs_twice_and_a_later_row_without_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="line 1: 2 columns 'a', which is to be text"):
        read(write(tmp_path / "f.csv", "a,a,label\ngood,x,1\n"), columns={"text": "a"})
    path = write(tmp_path / "f.jsonl", '{"a": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    with pytest.raises(InvalidInputError, match="line 2: no column 'a', which is to be text; there are: text, label"):
        read(path, columns={"text": "a"})


@pytest.mark.parametrize(
    ("task", "name", "content", "known"),
    [
        ("token-classification", "f.conll", "Ann B-PER\n", "tokens"),
        ("question-answering", "f.json", '{"data": []}', "question"),
        ("text-generation", "f.txt", "two words", "text"),
        ("text-generation", "d/f.txt", "two words", "text"),
        ("text-classification", "d/positive/f.txt", "good", "text"),
    ],
)
def test_columns_of_data_that_has_no_names_are_refused(
    tmp_path: Path, task: str, name: str, content: str, known: str
) -> None:
    write(tmp_path / name, content)
    with pytest.raises(InvalidInputError, match=rf"whose columns have no names: {known}=x cannot be found in it"):
        read(tmp_path / name.split("/")[0], task, columns={known: "x"})


def test_labels_of_the_data_are_mapped_to_those_of_the_model(tmp_path: Path) -> None:
    labels = {"5": "positive", "bad!": "0", "true": "positive"}
    path = write(tmp_path / "f.tsv", "good\t5\nbad\tbad!\nbad\tnegative\n")
    assert examples(path, labels=labels) == [GOOD, BAD, BAD]
    path = write(tmp_path / "f.jsonl", '{"text": "good", "label": true}\n{"text": "good", "label": 5.0}\n')
    assert examples(path, labels=labels) == [GOOD, GOOD]
    swapped = write(tmp_path / "g.tsv", "good\t0\nbad\t1\nbad\t-1\n")
    assert examples(swapped, labels={"0": "positive", "1": "negative", "-1": "negative"}) == [GOOD, BAD, BAD]
    words = write(tmp_path / "f.conll", "Ann person\nsings none\n")
    options = DataOptions(labels={"person": "B-PER", "none": "O"})
    (sentence,) = tagged(words, options)
    assert sentence.tags == ("B-PER", "O")


def test_labels_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", "good\t5\n")
    with pytest.raises(
        InvalidInputError, match="the label mapping 5=great: the model has no label 'great'; it has: neg"
    ):
        examples(path, labels={"5": "great"})
    with pytest.raises(InvalidInputError, match="no labels in fill-mask to map"):
        read_evaluation([path], "fill-mask", options=DataOptions(labels={"5": "x"}))
    with pytest.raises(InvalidInputError, match="predicts a number"):
        read_evaluation([path], "text-classification", ("score",), options=DataOptions(labels={"5": "score"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text", "--eval-columns has 'text'; give pairs"),
        ("text=", "has 'text='"),
        ("a=b,,", "has ''"),
        ("text=a,text=b", "gives 'text' twice: 'a' and 'b'"),
    ],
)
def test_a_mapping_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_mapping("--eval-columns", text)


def test_a_mapping_is_pairs() -> None:
    assert parse_mapping("", " text = the review ,label=a=b") == {"text": "the review", "label": "a=b"}


def test_the_options_are_in_the_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "text,review,label\ngood,bad,1\nbad,good,0\n")
    asked: list[dict[str, Any]] = [
        {}, {"columns": {"text": "review"}}, {"labels": {"0": "positive"}}, {"samples": 1},
    ]  # fmt: skip
    found = [read_evaluation([path], "text-classification", SENTIMENT, options=DataOptions(**item)) for item in asked]
    assert len({evaluation.sha256 for evaluation in found}) == 4


# Folders of texts


def test_a_folder_for_each_label(tmp_path: Path) -> None:
    write(tmp_path / "d" / "positive" / "1.txt", "good")
    write(tmp_path / "d" / "negative" / "deep" / "2.txt", "\ufeffbad")
    write(tmp_path / "d" / "negative" / ".hidden", b"\xff")
    write(tmp_path / "d" / "negative" / "picture.png", b"\xff")
    write(tmp_path / "d" / "urls.txt", "not a text of a label")
    assert examples(tmp_path / "d") == [BAD, GOOD]
    evaluation = read(tmp_path / "d")
    assert evaluation.files == ("d",)
    write(tmp_path / "d" / "positive" / "1.txt", "goods")
    assert read(tmp_path / "d").sha256 != evaluation.sha256


def test_texts_to_predict_from_folders_and_rows(tmp_path: Path) -> None:
    write(tmp_path / "d" / "b.txt", "second text")
    write(tmp_path / "d" / "a" / "1", "first text\nof two lines")
    write(tmp_path / "d" / "c.txt", "\n")
    assert [item.text for item in examples(tmp_path / "d", "text-generation")] == [
        "first text\nof two lines",
        "second text",
    ]
    rows = write(tmp_path / "f.csv", 'id,text\n1,"one\nrow"\n2,another row\n')
    assert [item.text for item in examples(rows, "text-generation")] == ["one\nrow", "another row"]


@pytest.mark.parametrize(
    ("files", "task", "message"),
    [
        ([], "text-classification", r"the evaluation folder .*d is empty"),
        (["a.csv", "b.csv"], "text-classification", "nor texts in one folder for each label; it has: a.csv, b.csv"),
        (["a.csv"], "text-generation", r"nor texts \(.txt\); it has: a.csv; name a file in it"),
        (["pos/1.txt"], "fill-mask", "neither a dataset .* nor anything else this task is read from; it has: pos"),
        (["pos/1.txt"], "question-answering", "nor anything else"),
        (["pos/1.txt"], "token-classification", "nor anything else"),
        (["great/1.txt"], "text-classification", "1.txt: the model has no label 'great'.*--eval-labels"),
        (["positive/1.txt"], "text-classification", "1.txt: the text is empty"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_says_what_it_has(
    tmp_path: Path, files: list[str], task: str, message: str
) -> None:
    (tmp_path / "d").mkdir()
    for name in files:
        write(tmp_path / "d" / name, "text" * ("great" in name))
    with pytest.raises(InvalidInputError, match=message):
        read(tmp_path / "d", task)


@pytest.mark.parametrize("name", ["f.tsv", "f.csv", "f.jsonl", "f.txt"])
def test_a_binary_file_is_called_one(tmp_path: Path, name: str) -> None:
    for task in ("text-classification", "text-generation"):
        with pytest.raises(InvalidInputError, match=rf"{name} is a binary file, or text that is not UTF-8"):
            read(write(tmp_path / name, b"PAR1\0\0\0\xff"), task)
        with pytest.raises(InvalidInputError, match="is a binary file"):
            read(write(tmp_path / name, "good\t1\n".encode("utf-16")), task)


# Datasets on disk


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dataset, a DatasetDict, and both as files."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("stored")
    features = datasets.Features(
        {
            "review": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(SENTIMENT)),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
            "answers": {"text": datasets.List(datasets.Value("string"))},
            "question": datasets.Value("string"),
            "context": datasets.Value("string"),
        }
    )

    def rows(*texts: str) -> Any:
        return datasets.Dataset.from_dict(
            {
                "review": list(texts),
                "label": [{"good": 1, "bad": 0}.get(text, -1) for text in texts],
                "tokens": [["Ann", text] for text in texts],
                "ner_tags": [[1, 0]] * len(texts),
                "answers": [{"text": [text]} for text in texts],
                "question": ["what?"] * len(texts),
                "context": [f"it is {text}" for text in texts],
            },
            features=features,
        )

    datasets.disable_progress_bars()
    rows("good", "unclear", "bad").save_to_disk(folder / "one")
    splits = {"train": rows("bad"), "test": rows("good", "bad"), "validation": rows("good")}
    datasets.DatasetDict(splits).save_to_disk(folder / "several")
    datasets.DatasetDict({"extra": rows("bad")}).save_to_disk(folder / "single")
    datasets.DatasetDict({"a": rows("bad"), "b": rows("bad")}).save_to_disk(folder / "unusual")
    rows("good", "unclear", "bad").to_parquet(folder / "one.parquet")
    datasets.enable_progress_bars()
    shutil.copy(next((folder / "one").glob("*.arrow")), folder / "one.arrow")
    return folder


@pytest.mark.parametrize("name", ["one", "one.parquet", "one.arrow"])
def test_datasets_give_rows_with_the_names_of_their_labels(stored: Path, name: str) -> None:
    """`unclear` has the label -1, which stands for none."""
    assert examples(stored / name) == [GOOD, BAD]
    assert tagged(stored / name)[1].tags == ("B-PER", "O")
    asked = examples(stored / name, "question-answering")
    assert (asked[0].question, asked[0].context, asked[0].answers) == ("what?", "it is good", ("good",))
    flipped = {"positive": "negative", "negative": "positive"}
    assert [item.gold for item in examples(stored / name, labels=flipped)] == ["negative", "positive"]


def test_an_arrow_file_of_other_programs_is_read(stored: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": ["good", "bad"], "label": [1, 0]})
    with pyarrow.ipc.new_file(str(tmp_path / "f.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert examples(tmp_path / "f.arrow") == [GOOD, BAD]


def test_the_split_is_chosen_and_named(stored: Path) -> None:
    assert read(stored / "several").files == ("several/validation",)
    assert examples(stored / "several") == [GOOD]
    assert examples(stored / "several", split="test") == [GOOD, BAD]
    assert examples(stored / "several" / "train") == [BAD]
    assert read(stored / "single").files == ("single/extra",)
    assert read(stored / "several", split="test").sha256 != read(stored / "several").sha256


def test_splits_that_cannot_be_used_are_refused(stored: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"several has not the split 'dev'; it has: train, test, validation"):
        read(stored / "several", split="dev")
    with pytest.raises(InvalidInputError, match="none of the splits validation, test, train; it has: a, b"):
        read(stored / "unusual")
    for name in ("one", "one.parquet"):
        with pytest.raises(InvalidInputError, match=rf"split 'test' is asked for, but .*{name} has no splits"):
            read(stored / name, split="test")


def test_datasets_that_cannot_be_used_are_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match="expected the columns score, sentence1 and sentence2; there are: review"
    ):
        read(stored / "one", "feature-extraction")
    with pytest.raises(InvalidInputError, match="no column 'stars', which is to be label; there are: review, label"):
        read(stored / "one.parquet", columns={"label": "stars"})
    with pytest.raises(InvalidInputError, match=r"one, row 0: the model has no label 'positive'; it has: x, y"):
        read_evaluation([stored / "one"], "text-classification", ("x", "y"))
    broken = Path(shutil.copytree(stored / "several", tmp_path / "several"))
    next((broken / "validation").glob("*.arrow")).write_bytes(b"none")
    with pytest.raises(InvalidInputError, match="validation cannot be read as a dataset: "):
        read(broken)
    write(broken / "dataset_dict.json", "{}")
    with pytest.raises(InvalidInputError, match=r"dataset_dict\.json is broken"):
        read(broken)
    for name in ("f.parquet", "f.arrow"):
        with pytest.raises(InvalidInputError, match=f"{name} cannot be read as a dataset: "):
            read(write(tmp_path / name, b"none"))


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path / "d" / "state.json", "{}")
    write(tmp_path / "d" / "dataset_info.json", "{}")
    for path in (tmp_path / "d", write(tmp_path / "f.parquet", b"PAR1")):
        with pytest.raises(InvalidInputError, match=r"needs the library datasets; install onnxpress\[data\]"):
            read(path)


# Streams and samples


def test_a_sample_is_even_ordered_and_the_same_every_time() -> None:
    assert sample(range(5), 5).items == sample(iter(range(5)), 9).items == (0, 1, 2, 3, 4)
    found = sample(iter(range(10_000)), 1000)
    assert found == sample(range(10_000), 1000)
    assert found.total == 10_000
    assert list(found.items) == sorted(set(found.items))
    for start in range(0, 10_000, 2500):  # of each quarter 250, with a standard deviation of 13
        assert 190 < sum(start <= item < start + 2500 for item in found.items) < 310


def test_groups_are_sampled_whole_wherever_their_items_are() -> None:
    stream = [(key, round_) for round_ in range(3) for key in range(500)]
    found = sample_groups(iter(stream), 40)
    assert found.total == 500
    assert len(found.items) == 40
    assert all(items == (0, 1, 2) for _, items in found.items)
    backwards = sample_groups(reversed(stream), 40)
    assert {key for key, _ in backwards.items} == {key for key, _ in found.items}
    assert sample_groups(stream, 600).items == tuple((key, (0, 1, 2)) for key in range(500))


def test_samples_of_a_file_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "f.tsv", "".join(f"text {number}\t{number % 2}\n" for number in range(100)) + "none\t-1\n")
    found = read(path, samples=10)
    assert (len(found.examples), found.rows) == (10, 100)
    assert found == read(path, samples=10)
    assert (len(read(path).examples), read(path).rows) == (100, 100)
    ranked = write(tmp_path / "g.tsv", "".join(f"q{number % 30}\td{number}\t1\n" for number in range(90)))
    evaluation = read(ranked, "text-ranking", samples=7)
    assert (len(evaluation.examples), evaluation.rows) == (7, 30)
    assert all(len(example.texts) == 3 for example in evaluation.examples)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_are_refused(samples: int) -> None:
    with pytest.raises(InvalidInputError, match=f"{samples} samples are asked for; give at least 1"):
        DataOptions(samples=samples)


def test_an_error_beyond_the_sample_is_named_by_its_line(tmp_path: Path) -> None:
    rows = "".join(f"text {number}\t1\n" for number in range(5000))
    with pytest.raises(InvalidInputError, match="line 5001: the model has no label '7'"):
        read(write(tmp_path / "f.tsv", rows + "text\t7\n"), samples=2)
    with pytest.raises(InvalidInputError, match="line 5002: not UTF-8"):
        read(write(tmp_path / "f.tsv", rows.encode() + b"text\t1\ntext\xff\t1\n"), samples=2)


def large_file(path: Path, row: str, size: int = 105_000_000) -> Path:
    """Rows of 50,000 characters until there are more than 100 MB."""
    line = row.encode() % (b"word " * 10_000)
    with path.open("wb") as file:
        for _ in range(size // len(line) + 1):
            file.write(line)
    return path


@pytest.mark.parametrize(
    ("name", "row", "task"),
    [
        ("f.jsonl", '{"text": "%b", "label": 1}\n', "text-classification"),
        ("f.csv", '"%b",1\n', "text-classification"),
        ("f.txt", "%b\n", "text-generation"),
        ("g.txt", "%b", "text-generation"),  # without a single line end
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, row: str, task: str) -> None:
    path = large_file(tmp_path / name, row)
    tracemalloc.start()
    try:
        evaluation = read(path, task, samples=20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        path.unlink()
    assert len(evaluation.examples) == 20
    assert evaluation.rows > 2000
    assert peak < 8_000_000


def test_a_row_without_an_end_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.runtime.data.lines.LONGEST_LINE", 1000)
    with pytest.raises(InvalidInputError, match=r"f\.tsv, line 2: longer than 1,000 characters"):
        read(write(tmp_path / "f.tsv", "good\t1\n" + "x" * 5000))


def test_a_large_text_is_read_in_blocks_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.runtime.data.lines.WHOLE_BYTES", 1000)
    text = "".join(f"line {number} of a text\n" for number in range(10_000))
    found = examples(write(tmp_path / "f.txt", text), "text-generation")
    assert "".join(item.text for item in found) == text
    assert all(item.text.endswith("\n") and 16_000 < len(item.text) <= 16_384 for item in found[:-1])
