"""What the terminal shows of a bundle: the table at the end of an export, and `onnxpress inspect`."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnxpress.cli.display import result_table
from onnxpress.cli.inspect import evaluated_on, head_facts, writing_rates
from onnxpress.runtime.manifest import LabelSettings, MaskSettings, TaskSettings, TokenizerSettings
from tests.report_fixtures import (
    Report,
    classifier,
    full_report,
    one_survivor,
    pressed_from_onnx,
    tagger,
    unmeasured,
    without_evaluation,
    writer,
)


def lines(report: Report, width: int) -> list[str]:
    """The table, as a terminal of that width shows it."""
    file = io.StringIO()
    Console(file=file, width=width).print(result_table(report, width))
    return file.getvalue().splitlines()


def settings(labels: LabelSettings | None = None, mask: MaskSettings | None = None) -> TaskSettings:
    return TaskSettings("some-task", TokenizerSettings("tokenizer.json", 512, 0), None, labels, mask)


def test_every_figure_has_a_column_where_there_is_room() -> None:
    heading, baseline, *_, int8 = lines(tagger(), 120)
    assert heading.split() == [
        *("variant", "entity", "F1", "precision", "recall", "changed", "agreement"),
        *("ms", "texts/s", "RAM", "MB", "start", "s", "disk", "MB", "status"),
    ]
    assert baseline.split()[2:7] == ["91.31", "90.68", "91.95", "-", "1.00000"]
    assert int8.split()[1:6] == ["90.87", "90.20", "91.55", "37", "0.99870"]


@pytest.mark.parametrize("report", [full_report(), without_evaluation(), classifier(), tagger(), pressed_from_onnx()])
def test_a_narrow_terminal_shows_less_but_cuts_no_figure(report: Report) -> None:
    heading, *rows = lines(report, 80)
    assert len(rows) == 4
    assert "…" not in "".join((heading, *rows))
    for name in ("variant", "ms", "texts/s", "disk MB", "status"):
        assert name in heading
    if report["evaluation"]:
        assert f"{report['variants'][2]['accuracy']:.2f}" in rows[3]
    if report["variants"][2]["changed_answers"] is not None:
        assert "changed" in heading


def test_what_was_not_measured_is_a_dash() -> None:
    heading, *rows = lines(unmeasured(), 120)
    assert "changed" not in heading
    assert rows[2].split() == ["int8", "0.99870", "-", "-", "-", "-", "22.9", "default"]


def test_a_decoder_shows_its_prompts_the_wait_and_its_tokens() -> None:
    heading, baseline, *_, int4 = lines(writer(), 120)
    assert "prompt tok/s  first ms  tok/s  tok/s x16" in heading
    assert baseline.split()[2:8] == ["104.59", "1.00000", "446", "143.5", "54", "249"]
    assert int4.split()[1:7] == ["105.10", "0.99870", "1,626", "39.4", "1,479", "2,273"]
    heading, *_ = lines(writer(), 80)
    assert "tok/s x16" in heading


def test_failed_variants_are_called_failed() -> None:
    assert [line.split()[-1] for line in lines(one_survivor(), 120)] == [
        *("status", "baseline", "default", "failed", "failed"),
    ]


def test_labels_are_counted_and_the_first_few_named() -> None:
    names = tuple(f"topic {number}" for number in range(150))
    facts = dict(head_facts(settings(LabelSettings(names, "softmax"))))
    assert facts["labels"].startswith("150: topic 0, topic 1, ")
    assert facts["labels"].endswith(", ...")
    assert len(facts["labels"]) < 110
    assert facts["scores"] == "softmax over the labels"
    few = dict(head_facts(settings(LabelSettings(("negative", "positive"), "sigmoid"))))
    assert few == {"labels": "2: negative, positive", "scores": "sigmoid of each logit"}
    assert dict(head_facts(settings(LabelSettings(("x" * 200,), "identity"))))["label"] == "x" * 200


def test_the_mask_is_named() -> None:
    assert dict(head_facts(settings(mask=MaskSettings("[MASK]", 103)))) == {"mask": "[MASK], id 103"}


def test_how_fast_a_decoder_writes_is_read_from_the_report_where_it_is() -> None:
    assert writing_rates(writer()) == {"fp32": 2396.8, "int8": 2510.0, "int4": 2273.0}
    rows = {"variants": [{"name": "fp32", "throughput": [{"tokens_per_second": "fast"}]}]}
    for useless in (full_report(), {}, {"variants": {}}, {"variants": 3}, rows):
        assert writing_rates(useless) == {}


def test_the_evaluation_is_read_from_the_report_where_it_is() -> None:
    assert evaluated_on(tagger()) == "examples.tsv, 872 examples, by entity F1 x 100"
    for useless in (without_evaluation(), {}, {"evaluation": {}}, {"evaluation": [3]}):
        assert evaluated_on(useless) is None
