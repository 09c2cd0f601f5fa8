"""The report page: its figures are the report's, nothing in a report can break out of it, and a browser likes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onnxpress.exporter.page.labels import Box, place_labels
from onnxpress.exporter.page.markup import element, escape
from onnxpress.exporter.page.page import render_report
from onnxpress.exporter.page.scatter import Axis, pareto_front
from onnxpress.exporter.page.values import fixed, moment, number, reference_tokens, scientific, signed, significant
from tests.browser import open_browser
from tests.report_fixtures import (
    CASES,
    HOSTILE,
    Report,
    all_reports,
    classifier,
    full_report,
    hostile,
    one_survivor,
    pressed_from_onnx,
    searched,
    six_variants,
    tagger,
    unmeasured,
    with_logits,
    without_evaluation,
    writer,
)

VOID = {"br", "link", "meta"}
REPORTS = all_reports()


class Page(HTMLParser):
    """What a browser would see: elements, and the text of every table as rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.unbalanced: list[str] = []
        self._open: list[str] = []
        self._caption: str | None = None
        self.text = ""
        self.feed(html)
        self.unbalanced += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("span", "li", "br"):
            self.handle_data(" ")  # these stand beside or below others, so their words are not one word
        if tag == "table":
            self._caption = ""
        if tag == "tr" and self._caption is not None:
            self.tables.setdefault(self._caption, []).append([])
        if tag in ("td", "th") and self._caption is not None:
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)
        if tag == "table":
            self._caption = None
        if tag == "span":
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        self.text += data
        if "caption" in self._open:
            assert self._caption is not None
            self._caption += data
        elif self._caption is not None and {"td", "th"} & set(self._open):
            self.tables[self._caption][-1][-1] += data

    def rows(self, caption: str) -> dict[str, list[str]]:
        """Rows of a table under their heading."""
        rows = next(rows for name, rows in self.tables.items() if name.startswith(caption))
        cleaned = [[" ".join(cell.split()) for cell in row] for row in rows]
        return {row[0]: row[1:] for row in cleaned}


@pytest.mark.parametrize("name", REPORTS)
def test_every_example_gives_one_well_formed_file(name: str) -> None:
    html = render_report(REPORTS[name])
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.unbalanced == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    html.encode("utf-8")  # no lone surrogates
    for _, attributes in page.elements:
        reference = attributes.get("aria-labelledby")
        assert reference is None or reference in ids
        assert "style" not in attributes  # the content security policy would refuse it


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_loaded_from_anywhere(name: str) -> None:
    page = Page(render_report(REPORTS[name]))
    sources = [
        (tag, value)
        for tag, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "data", "action")
    ]
    assert sources == [("link", "data:,")]
    assert "@import" not in render_report(REPORTS[name])
    assert "url(" not in render_report(REPORTS[name])


def test_the_report_is_not_changed() -> None:
    report = full_report()
    render_report(report)
    assert report == full_report()


def test_what_the_hardware_decided_is_told_with_its_reasons() -> None:
    report = full_report()
    report["hardware"]["cuda_compute_capability"] = "8.9"
    text = Page(render_report(report)).text
    assert "Decided by the hardware here" in text
    assert "Weights of int8signed, 8 bits: AVX-512 VNNI sums 8-bit products in 32 bits." in text
    assert "CUDA compute capability8.9" in text
    assert "On another kind of machineother choices may be right" in text
    report["hardware"] = {"decisions": [], "cuda_compute_capability": None}
    assert "Decided by the hardware here" not in Page(render_report(report)).text


def test_hostile_texts_stay_text() -> None:
    page = Page(render_report(hostile()))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert f"all-MiniLM-L6-v2{HOSTILE[:40]}" in page.text
    assert "\x00" not in page.text
    assert "\u202e" not in page.text


def test_hostile_scales_of_figures_do_not_break_the_page() -> None:
    report = full_report()
    report["variants"][0]["accuracy"] = float("nan")
    report["variants"][1] |= {"accuracy": 0.0, "size_bytes": 0, "peak_memory_bytes": 10**15, "cold_start_seconds": True}
    report["variants"][2]["latency"][0] |= {"p50_ms": 0.0, "p95_ms": 1e9}
    report["baseline"]["throughput"] = [{"batch": 1, "texts_per_second": 0.0}]
    html = render_report(report)
    assert Page(html).unbalanced == []
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.S).lower()


def test_escaping_is_the_default() -> None:
    assert element("b", "<i>", title='"&') == '<b title="&quot;&amp;">&lt;i&gt;</b>'
    assert element("b", element("i", "x"), None, ["<", element("br")]) == "<b><i>x</i>&lt;<br></b>"
    assert escape("a\x00\ud800b") == "a\ufffd\ufffdb"


def test_the_header_says_what_was_chosen_and_why() -> None:
    text = " ".join(Page(render_report(full_report())).text.split())
    assert "int8 is the default: fastest (1,640 texts a second, 5.1x PyTorch) of 3 variants" in text
    assert "5.1× faster" in text
    assert "1,640 against 320 texts/s" in text
    assert "4.6× faster" in text
    assert "−61 %" in text
    assert "22.9 against 90.9 MB" in text
    assert "−0.20 points" in text
    assert "24 November 2026, 03:30 UTC" in text


def test_the_order_of_the_sections() -> None:
    headings = re.findall(r"<h2[^>]*>([^<]*)", render_report(full_report()))
    assert headings == [
        "The default against PyTorch",
        "Accuracy versus latency",
        "Latency",
        "Throughput",
        "Memory, size and start",
        "All variants",
        "Parity with PyTorch",
        "What each pass did",
        "Kept in float32",
        "Notes",
        "How this was measured",
    ]


def test_a_search_shows_what_was_tried() -> None:
    html = render_report(searched())
    page = Page(html)
    rows = page.rows("Graphs tried")
    assert rows["Graph"] == [
        "Nodes by precision",
        "Divergence",
        "Drop points, at most 1",
        "Speed float32 = 1",
        "Size MB",
        "Holds",
    ]
    assert rows["int8"] == ["13 int8, 0 fp32", "0.0400", "7.11", "2.50", "58.8", "✕ no"]
    assert rows["mixed 2"][-1] == "✕ differs from PyTorch: allowed 0.2"
    assert rows["mixed 3 accepted"] == ["9 int8, 4 fp32", "0.00250", "0.23", "2.31", "66.0", "✓ yes"]
    assert rows["mixed 4"][-1] == "✕ not on the examples held out"
    assert "88.30 against 88.53 in float32 on 436 examples; change with its 95 % interval: −1.15 to 0.69" in page.text
    tips = [attributes.get("data-tip") for _, attributes in page.elements]
    assert "Trial int8\nDrop 7.11\n2.50 times float32's speed" in tips
    assert html.index(">Search<") < html.index(">Sensitivity<")


def test_sensitive_nodes_are_drawn_by_their_modules_the_largest_first() -> None:
    page = Page(render_report(searched()))
    tips = [attributes.get("data-tip") or "" for _, attributes in page.elements]
    bars = list(dict.fromkeys(tip.partition("\n")[0] for tip in tips if "Local error" in tip))
    assert bars[:3] == [
        "bert.encoder.layer.0.attention.self.value",
        "bert.encoder.layer.0.output",
        "bert.encoder.layer.1.attention.self.value",
    ]
    assert len(bars) == 12
    assert "And 1 more, each with less." in page.text
    assert "layer.0.attention.self.value" in page.text
    assert "0.0200 · fp32" in page.text
    assert any("estimated from the local error" in tip for tip in tips)


def test_the_figures_of_the_variants_are_those_of_the_report() -> None:
    rows = Page(render_report(full_report())).rows("All variants")
    assert rows["PyTorch eager"] == ["◆ reference", "87.12", "–", "9.10", "320", "612", "7.90", "90.9"]
    assert rows["fp32"] == ["✓ passed", "87.12", "0.00", "3.18", "885", "331", "0.47", "90.9"]
    assert rows["int8 default"] == ["✓ passed", "86.92", "0.20 −0.02 to 0.43", "1.98", "1,640", "238", "0.41", "22.9"]


def test_headings_name_units() -> None:
    heading = Page(render_report(full_report())).rows("All variants")["Variant"]
    assert heading == [
        "Status",
        "Spearman correlation x 100",
        "Drop points, at most 1, with its 95 % interval",
        "Latency p50 ms, 16 tokens",
        "Throughput texts/s, best batch",
        "Peak memory MB",
        "Cold start s",
        "Size MB",
    ]


def test_the_interval_of_a_rise_of_perplexity_is_not_turned_round() -> None:
    report = writer()
    report["variants"][1]["accuracy_interval"] = {"difference": 0.11, "low": -0.05, "high": 0.31}
    rows = Page(render_report(report)).rows("All variants")
    assert rows["Variant"][2] == "Rise %, at most 1, with its 95 % interval"
    assert rows["int8"][2] == "0.11 −0.05 to 0.31"


def test_every_figure_of_the_evaluation_has_a_column_and_the_primary_one_comes_first() -> None:
    rows = Page(render_report(classifier())).rows("All variants")
    assert rows["Variant"][1:5] == ["Accuracy %", "Drop points, at most 1", "Macro F1 x 100", "Changed answers of 872"]
    assert rows["PyTorch eager"][1:5] == ["88.19", "–", "88.18", "–"]
    assert rows["fp16"][1:5] == ["88.19", "0.00", "88.18", "0"]
    assert rows["int8 default"][1:5] == ["88.42", "−0.23", "88.40", "12"]


@pytest.mark.parametrize(
    ("label", "keys", "headings"),
    [
        ("entity F1 x 100", ("f1", "precision", "recall"), ["Entity F1 x 100", "Precision %", "Recall %"]),
        ("answer F1 x 100", ("f1", "exact_match"), ["Answer F1 x 100", "Exact match %"]),
        ("MRR@10 x 100", ("mrr_at_10", "ndcg_at_10"), ["MRR@10 x 100", "nDCG@10 x 100"]),
        ("first proposal right, %", ("top_1", "top_5"), ["Top-1 first proposal right, %", "Top-5 %"]),
        ("Spearman correlation x 100", ("spearman", "pearson"), ["Spearman correlation x 100", "Pearson x 100"]),
        ("my figure", ("my_figure", "my_other"), ["My figure", "My other"]),
    ],
)
def test_figures_have_plain_names(label: str, keys: tuple[str, ...], headings: list[str]) -> None:
    scores = {key: [90.0, 90.0, 90.0, 89.5] for key in keys}
    report = with_logits("any-task", label, scores, (0, 0, 0), None)
    heading = Page(render_report(report)).rows("All variants")["Variant"]
    assert [heading[1], *heading[3:-6]] == headings


def test_the_header_says_how_many_answers_changed() -> None:
    text = " ".join(Page(render_report(classifier())).text.split())
    assert "Accuracy change" in text
    assert "88.42 against 88.19" in text
    assert "12 of 872 answers changed" in text
    assert "answers changed" not in Page(render_report(full_report())).text


def test_models_without_embeddings_are_not_spoken_of_as_embedders() -> None:
    text = Page(render_report(classifier())).text
    assert "negative, positive" in text
    assert "2 labels" in text
    for word in ("dimension", "Pooling", "Normalized", "embedding"):
        assert word not in text
    assert "labels" not in Page(render_report(full_report())).text


def test_a_decoder_is_judged_by_how_it_writes() -> None:
    page = Page(render_report(writer()))
    rows = page.rows("All variants")
    assert rows["Variant"][1:7] == [
        "Perplexity",
        "Rise %, at most 1",
        "Prompt tokens/s, 64 tokens",
        "First token ms, 64 tokens",
        "One request new tokens/s",
        "16 requests new tokens/s",
    ]
    assert rows["int4 default"][1:7] == ["105.10", "0.49", "1,626", "39.4", "1,479", "2,273"]
    text = "".join(page.text.split())
    for shown in (
        "One request 27.4× faster 1,479 against 53.9 tokens/s",
        "16 requests together 9.1× faster 2,273 against 249 tokens/s",
        "First token after 64 tokens 3.6× faster 39.4 against 144 ms",
        "+0.49 % 105.10 against 104.59",
        "Time to the first token",
        "Accuracy drop allowed 1 %",
    ):
        assert shown.replace(" ", "") in text, shown
    for word in ("texts/s", "Texts a second", "points", "Spearman"):
        assert word not in page.text


def test_of_perplexity_less_is_further_up() -> None:
    html = render_report(writer())
    assert "On the Pareto front: int4 (default), int8, fp32." in html
    assert "Perplexity (lower is better)" in html
    assert "highest accepted: PyTorch + 1 %" in html
    chart = html[html.index('id="accuracy-chart-wide-title"') :]
    ticks = re.findall(r'y="([\d.]+)" class="tick end">(\d+\.\d+)<', chart[: chart.index("</svg>")])
    heights = [float(y) for y, _ in sorted(ticks, key=lambda tick: float(tick[1]))]
    assert len(heights) > 2
    assert heights == sorted(heights)


def test_of_many_labels_the_first_few_are_named() -> None:
    report = classifier()
    report["model"]["labels"] = [f"topic {number}" for number in range(1500)]
    text = Page(render_report(report)).text
    assert "1,500 labels" in text
    assert "topic 0, topic 1," in text
    assert "topic 9, … (1,500 in all)" in text
    assert "topic 10" not in text


def test_another_baseline_is_called_by_its_name() -> None:
    html = render_report(pressed_from_onnx())
    page = Page(html)
    assert "PyTorch" not in html
    assert "ONNX file as given" in page.rows("All variants and the ONNX file as given")
    text = " ".join(page.text.split())
    for sentence in (
        "Parity with the ONNX file as given",
        "Every variant computes the same inputs as the ONNX file as given does.",
        "The ONNX file as given and every variant ran in processes of their own",
        "lowest accepted: the ONNX file as given − 1",
    ):
        assert sentence in text


def test_failed_variants_show_a_reason_and_no_figures() -> None:
    page = Page(render_report(one_survivor()))
    rows = page.rows("All variants")
    assert rows["int8"] == ["✕ failed", "Not in the bundle: loses 1.31 points (85.81 against 87.12), allowed 1"]
    assert rows["fp16"][0] == "✕ failed"
    assert len(rows["fp16"]) == 2
    assert "fp16, int8 did not pass the gate and are not in the bundle (of 3 variants)" in " ".join(page.text.split())
    assert "/encoder/layer.0/attention/self/Softmax_output_0" in page.text
    assert "not a finite number" in page.text
    assert "fp16 (failed), int8 (failed)" in page.text


def test_unverified_variants_are_marked() -> None:
    page = Page(render_report(six_variants()))
    assert page.rows("All variants")["fp16-cuda"][0] == "? unverified"
    assert "fp16-cuda is in the bundle but unverified" in " ".join(page.text.split())


def test_a_failed_variant_is_never_shown_as_the_default() -> None:
    report = one_survivor()
    report["default"]["variant"] = "int8"
    page = Page(render_report(report))
    assert "No variant was chosen" in page.text
    assert "int8 default" not in page.rows("All variants")


def test_every_case_of_every_variant_is_in_the_parity_table() -> None:
    report = six_variants()
    rows = Page(render_report(report)).rows("Parity with PyTorch")
    assert list(rows) == ["Case", *CASES, "Worst of all cases"]
    names = [variant["name"] for variant in report["variants"]]
    for name, heading in zip(names, rows["Case"], strict=True):
        assert heading.startswith(name)
    assert "difference ≤ 1×10⁻⁴ × max(1, max |output|) 12 of 12 passed" in rows["Case"][0]
    assert "cosine ≥ 0.98 11 of 12 passed" in rows["Case"][5]
    for variant, index in zip(report["variants"], range(6), strict=True):
        for case in variant["parity"]["cases"]:
            shown = rows[case["name"]][index]
            assert scientific(case["max_abs_difference"]) in shown
            assert f"{case['min_cosine']:.6f}" in shown
            assert ("✓ passed" in shown) == case["passed"]
            assert ("failed" in shown) != case["passed"]


def test_logits_are_compared_by_their_rms_error() -> None:
    report = tagger()
    page = Page(render_report(report))
    rows = page.rows("Parity with PyTorch")
    assert "difference ≤ 1×10⁻⁴ × max(1, max |output|) 12 of 12 passed" in rows["Case"][0]
    assert "RMS error ≤ 0.03 11 of 12 passed" in rows["Case"][1]
    assert "RMS error ≤ 0.2 12 of 12 passed" in rows["Case"][2]
    for index, variant in enumerate(report["variants"]):
        for case in variant["parity"]["cases"]:
            shown = rows[case["name"]][index]
            assert scientific(case["max_abs_difference"]) in shown
            assert scientific(case["rms_error"]) in shown
    assert "0.0520" in rows["Worst of all cases"][1]
    assert "cosine" not in page.text
    html = render_report(report)
    assert html.count('<span class="decides">0.0520</span>') == 2  # the case, and the worst of all


def test_cases_with_the_same_name_are_all_listed() -> None:
    report = full_report()
    for case in report["variants"][0]["parity"]["cases"]:
        case["name"] = "twice"
    html = render_report(report)
    assert html.count(">twice</th>") == len(CASES)


def test_passes_that_variants_share_are_listed_once() -> None:
    rows = Page(render_report(full_report())).rows("Passes over the graph")
    assert rows["fuse"][0] == "fp32, fp16, int8"
    assert rows["fuse"][2:] == ["412", "298", "−114", "6 MultiHeadAttention"]
    assert rows["quantize to int8"][0] == "int8"
    assert rows["quantize to int8"][4:] == ["+153", "24 DynamicQuantizeLinear 36 MatMulInteger"]


def test_candidates_show_their_time_and_the_chosen_one() -> None:
    rows = Page(render_report(full_report())).rows("Forms tried for int8")
    assert rows["signed 8-bit weights, per channel chosen"][-2:] == ["9.04", "0.031"]
    assert rows["signed 8-bit weights, per tensor"][-2:] == ["9.11", "0.094"]


def test_without_evaluation_the_axis_is_agreement() -> None:
    html = render_report(without_evaluation())
    page = Page(html)
    assert ">Agreement with PyTorch (higher is better)</text>" in html
    assert "Spearman" not in html
    assert page.rows("All variants")["Variant"][1] == "Agreement mean cosine"
    assert page.rows("All variants")["PyTorch eager"][1] == "1.0000"
    assert page.rows("All variants")["int8 default"][1] == "0.9987"


def test_with_evaluation_the_axis_is_its_label() -> None:
    html = render_report(full_report())
    assert ">Spearman correlation x 100 (higher is better)</text>" in html
    assert ">Agreement with PyTorch" not in html


def test_the_front_is_marked() -> None:
    page = Page(render_report(full_report()))
    points = [attributes["class"] for tag, attributes in page.elements if tag == "path" and "point" in str(attributes)]
    # For each of three widths, fp32 and the default; then their signs in the legend.
    assert points.count("point other on-front") == 4
    assert points.count("point default on-front") == 4
    assert points.count("point baseline") == 4


def test_without_measurements_there_is_still_a_page() -> None:
    page = Page(render_report(unmeasured()))
    assert "Latency was not measured." in page.text
    assert "Nothing was timed (--measure none)." in page.text
    assert page.rows("All variants")["int8 default"] == ["✓ passed", "0.9987", "–", "–", "–", "–", "22.9"]


@pytest.mark.parametrize("key", sorted({*full_report(), "model"} - {"schema_version"}))
def test_any_part_may_be_missing(key: str) -> None:
    empty: Any = [] if key in ("variants", "steps") else None
    assert Page(render_report(full_report() | {key: empty})).unbalanced == []


@pytest.mark.parametrize("key", sorted(full_report()["variants"][2]))
def test_any_figure_of_a_variant_may_be_missing(key: str) -> None:
    report = full_report()
    report["variants"][2].pop(key)
    assert Page(render_report(report)).unbalanced == []


def test_every_figure_may_be_null() -> None:
    def emptied(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: emptied(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [emptied(item) for item in value]
        return None if isinstance(value, (int, float)) and key not in ("tokens", "batch", "default") else value

    page = Page(render_report(emptied(six_variants())))
    assert page.unbalanced == []
    assert "None" not in page.text


def test_pareto_front() -> None:
    # Latency, accuracy. The third is beaten by the second, the last by all that are faster and as accurate.
    points = [(2.0, 86.9), (3.0, 87.1), (3.5, 87.0), (1.0, 80.0), (9.0, 87.1)]
    assert pareto_front(points) == [3, 0, 1]
    assert pareto_front([(5.0, 1.0)]) == [0]
    assert pareto_front([(1.0, 1.0), (1.0, 1.0), (2.0, 1.0)]) == [0, 1]
    assert pareto_front([(1.0, 1.0), (1.0, 2.0)]) == [1]
    assert pareto_front([]) == []


def test_reference_length_is_that_of_a_short_text() -> None:
    def report(*lengths: int) -> Report:
        rows = [{"tokens": length, "batch": 1, "p50_ms": 1.0} for length in lengths]
        return {"variants": [{"name": "fp32", "status": "passed", "latency": rows}]}

    assert reference_tokens(report(16, 64, 256)) == 16
    assert reference_tokens(report(8, 24, 32)) == 24
    assert reference_tokens(report(64, 256)) == 64
    assert reference_tokens(report(4, 128)) == 4
    assert reference_tokens(report()) is None


def test_numbers_are_written_for_people() -> None:
    assert [significant(value) for value in (1640.2, 320.4, 61.24, 9.104, 0.409)] == [
        "1,640",
        "320",
        "61.2",
        "9.10",
        "0.41",
    ]
    assert number(None, 2) == "–"
    assert number(0.0004, 1) == "0.0004"
    assert number(-0.2, 2) == "−0.20"
    assert [fixed(value, 2) for value in (0.0004, -0.001, -0.2, 87.1)] == ["0.00", "0.00", "−0.20", "87.10"]
    assert [scientific(value) for value in (2.4e-7, 0.0132, 0.0, 1e-4)] == ["2.4×10⁻⁷", "0.0132", "0", "1.0×10⁻⁴"]
    assert [signed(value, 2) for value in (-0.2, 0.2, 0.001, -0.001)] == ["−0.20", "+0.20", "0.00", "0.00"]
    assert moment("2026-11-24T05:30:00+02:00") == "24 November 2026, 03:30 UTC"
    assert moment("yesterday") == "yesterday"


def test_ticks_are_round_and_inside() -> None:
    assert Axis(0.0, 10.2, 0, 100).ticks(5) == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert [round(tick, 6) for tick in Axis(86.05, 87.24, 0, 100).ticks(5)] == [86.25, 86.5, 86.75, 87.0]


def test_labels_of_close_points_do_not_overlap() -> None:
    points = [(100.0, 60.0), (103.0, 61.0), (100.0, 60.0), (108.0, 58.0), (230.0, 60.0), (98.0, 66.0)]
    bounds = Box(60, 20, 310, 290)
    labels = [label.box for label in place_labels(points, [90.0] * 6, bounds)]
    for index, box in enumerate(labels):
        assert box.overlap(bounds) == pytest.approx(box.area)
        assert all(box.overlap(other) == 0 for other in labels[:index])
        assert all(box.overlap(Box.around(*point, 6)) == 0 for point in points)


# In a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


class Opened:
    """A report in a browser that answers no request, and what happened there."""

    def __init__(self, browser: Any, folder: Path, report: Report, *, width: int = 1280, dark: bool = False) -> None:
        file = folder / "report.html"
        file.write_text(render_report(report), encoding="utf-8")
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._refuse)
        self.page.route("**/*", self._answer)
        self.page.goto(file.as_uri())
        self.file = file

    def _refuse(self, dialog: Any) -> None:
        self.errors.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _answer(self, route: Any) -> None:
        self.requests.append(route.request.url)
        if route.request.url.startswith("file:") and len(self.requests) == 1:
            route.continue_()
        else:
            route.abort()

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        pixels: int = self.page.evaluate(script)
        return pixels

    def check_quiet(self) -> None:
        """Only the file itself was asked for, and nothing went wrong."""
        assert self.requests == [self.file.as_uri()]
        assert self.errors == []


@pytest.mark.parametrize("name", REPORTS)
def test_browser_shows_every_example_without_sideways_scrolling(browser: Any, tmp_path: Path, name: str) -> None:
    opened = Opened(browser, tmp_path, REPORTS[name], dark=name == "six_variants")
    for width in (1280, 820, 390):
        opened.page.set_viewport_size({"width": width, "height": 900})
        assert opened.page.locator("table.variants").is_visible()
        assert opened.overflow() == 0, width
    opened.check_quiet()
    opened.page.context.close()


@pytest.mark.parametrize(("width", "size"), [(1280, "wide"), (820, "medium"), (390, "narrow")])
def test_browser_names_the_variant_that_is_pointed_at(browser: Any, tmp_path: Path, width: int, size: str) -> None:
    opened = Opened(browser, tmp_path, full_report(), width=width)
    page = opened.page
    charts = page.locator("#accuracy-chart svg[role=group]:visible")
    assert charts.count() == 1
    tip = page.locator("#tip")
    assert not tip.is_visible()
    for name, figures in (("PyTorch eager", "9.10 ms"), ("int8 (default)", "1.98 ms"), ("fp16", "3.41 ms")):
        page.locator(f"#accuracy-chart .{size} .mark", has=page.get_by_text(name, exact=True)).locator(".point").hover()
        assert tip.locator("strong").inner_text() == name
        assert figures in tip.inner_text()
    page.locator(f"#latency-chart .{size} .row").nth(1).hover()
    assert tip.inner_text().startswith("fp32, 16 tokens\np50 3.18 ms · p95 3.37 ms")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    opened.check_quiet()
    page.context.close()


def test_browser_names_points_to_the_keyboard_too(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, full_report())
    opened.page.locator("#accuracy-chart .wide .mark").last.focus()
    assert opened.page.locator("#tip strong").inner_text() == "int8 (default)"
    opened.page.context.close()


def test_browser_runs_nothing_that_a_report_brings(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, hostile())
    page = opened.page
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.images.length") == 0
    page.locator("#accuracy-chart .wide .mark .point").first.hover()
    assert "<script>" in page.locator("#tip").inner_text()
    # Even markup that came in some other way would not run: the policy allows our own script only.
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert page.evaluate("window.ran") is None
    page.context.close()


def test_browser_prints_light_and_unfolded(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path, six_variants(), width=690, dark=True)
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details:not([open])").count() == 0
    assert opened.overflow() == 0
    opened.check_quiet()
    page.context.close()


def test_fixtures_are_json() -> None:
    for name, report in REPORTS.items():
        assert json.loads(json.dumps(report)) == report, name
