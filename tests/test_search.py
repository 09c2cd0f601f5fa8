"""The search for the graph that holds the accuracy asked for: its plan on made-up graphs, and exports with it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onnxpress
from onnxpress.cli.export import _seconds
from onnxpress.exporter import encoder_precisions
from onnxpress.exporter.search import step, trials
from onnxpress.exporter.search.limits import Limit
from onnxpress.exporter.search.moves import Ladder, make_ladder, undone
from onnxpress.exporter.search.plan import OutOfTimeError, Trial, run_plan
from onnxpress.exporter.search.splits import split
from onnxpress.exporter.search.trials import TrialBench
from onnxpress.quantize.embedding_tables import EmbeddingConfig, quantize_embedding_tables
from onnxpress.quantize.sensitivity import NodeSensitivity, Sensitivity, measure_sensitivity
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.evaluation import Evaluation, read_evaluation
from onnxpress.runtime.evaluation.text_generation import Passage
from tests.elsewhere import VNNI
from tests.outlier_models import Classifier, make_hard, minilm, train_tiny

# The plan


def sensitivity(precision: str, divergences: Mapping[str, float], bytes_left: float = 0.25) -> Sensitivity:
    nodes = [
        NodeSensitivity(name, "MatMul", value, True, value, 1000, round(1000 * bytes_left), 1000)
        for name, value in divergences.items()
    ]
    return Sensitivity(precision, sum(divergences.values()), tuple(nodes), 1, 0.0)


class MadeUp:
    """A bench whose graphs have the sum of their nodes' divergences, and take half of float32's time for each node that
    is quantized."""

    spread = 0.0

    def __init__(
        self,
        *parts: Sensitivity,
        limit: float,
        held_out: float | None = None,
        most_trials: int | None = None,
        interrupt_at: int | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        self.trials: list[Trial] = []
        self.looks: list[Trial] = []
        self.parts = {part.precision: {node.node: node.divergence for node in part.nodes} for part in parts}
        self._sensitivities = parts
        self._limit, self._held_out = limit, limit if held_out is None else held_out
        self._most_trials, self._interrupt_at = most_trials, interrupt_at
        self._times = times or dict.fromkeys(self.parts, 0.5)

    def uniform(self) -> dict[str, dict[str, str]]:
        return {name: dict.fromkeys(nodes, name) for name, nodes in self.parts.items()}

    def measure(self, assignment: Mapping[str, str], name: str | None = None) -> Trial:
        for known in self.trials:
            if known.assignment == assignment:
                return known
        if self._most_trials is not None and len(self.trials) >= self._most_trials:
            raise OutOfTimeError
        if len(self.trials) == self._interrupt_at:
            raise KeyboardInterrupt
        divergence = sum(self.parts[precision][node] for node, precision in assignment.items())
        count = len(next(iter(self.parts.values())))
        cost = 1.0 - sum(1 - self._times[precision] for precision in assignment.values()) / count
        made = Trial(name or f"mixed {len(self.trials)}", assignment, cost, divergence, divergence <= self._limit, {})
        self.trials.append(made)
        return made

    def ladder(self) -> Ladder:
        return make_ladder(self._sensitivities, self._times)

    def accepts(self, trial: Trial) -> bool:
        self.looks.append(trial)
        return trial.divergence <= self._held_out


NODES = {f"node {index}": 2.0**-index for index in range(16)}  # 1, 1/2, 1/4, ...


def float32_nodes(trial: Trial) -> set[str]:
    return set(NODES) - set(trial.assignment)


def test_the_fewest_nodes_are_raised_those_that_hurt_most() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=0.13)
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    assert float32_nodes(found.accepted) == {"node 0", "node 1", "node 2", "node 3"}
    assert found.ended == "done"
    assert len(bench.trials) <= 12


def test_a_uniform_graph_that_holds_is_enough() -> None:
    bench = MadeUp(sensitivity("int8", NODES), sensitivity("static", NODES), limit=2.0)
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    assert len(bench.trials) == 2


def test_of_graphs_that_are_about_as_fast_the_one_nearest_to_float32_is_taken() -> None:
    rough, fine = sensitivity("int8", NODES), sensitivity("static", {name: value / 9 for name, value in NODES.items()})
    bench = MadeUp(rough, fine, limit=2.0, times={"int8": 0.5, "static": 0.52})
    bench.spread = 0.05
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    assert (found.accepted.name, len(bench.trials)) == ("static", 2)
    bench.spread = 0.0
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    assert found.accepted.name == "int8"


def test_moves_that_were_not_needed_are_taken_back() -> None:
    # By divergence for their price both come first, but one of them is enough: 1.0 and 0.9 of which 1.0 may stay.
    bench = MadeUp(sensitivity("int8", {"a": 1.0, "b": 0.9, "c": 0.01, "d": 0.01}), limit=0.95)
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    assert set(found.accepted.assignment) == {"b", "c", "d"}


def test_each_node_takes_the_cheapest_form_that_helps() -> None:
    four, eight = sensitivity("int4", NODES), sensitivity("int8", {name: value / 50 for name, value in NODES.items()})
    bench = MadeUp(four, eight, limit=0.2, times={"int4": 0.3, "int8": 0.5})
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    kinds = found.accepted.assignment
    assert [kinds[f"node {index}"] for index in (0, 1, 2, 6, 15)] == ["int8", "int8", "int8", "int4", "int4"]
    assert not float32_nodes(found.accepted)


def test_without_time_nothing_is_tried() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=0.1, most_trials=0)
    assert run_plan(bench, bench.uniform) == run_plan(bench, bench.uniform)
    found = run_plan(bench, bench.uniform)
    assert (found.accepted, found.ended, bench.trials, bench.looks) == (None, "budget", [], [])


def test_when_time_is_up_the_best_so_far_is_the_answer() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=0.01, most_trials=7)
    found = run_plan(bench, bench.uniform)
    assert found.ended == "budget"
    assert found.accepted is not None
    assert found.accepted == min((trial for trial in bench.trials if trial.holds), key=lambda trial: trial.cost)


def test_ctrl_c_ends_the_search_with_the_best_so_far() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=0.01, interrupt_at=7)
    found = run_plan(bench, bench.uniform)
    assert found.ended == "interrupt"
    assert found.accepted is not None


def test_where_nothing_holds_there_is_no_answer() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=-1.0)
    found = run_plan(bench, bench.uniform)
    assert found.accepted is None
    assert not bench.looks  # what did not hold is not shown the examples held out


def test_what_is_no_faster_than_float32_is_of_no_use() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=9.0, times={"int8": 1.1})
    assert run_plan(bench, bench.uniform).accepted is None


def test_one_that_fails_on_held_out_examples_gives_way_to_more_precise_ones() -> None:
    bench = MadeUp(sensitivity("int8", NODES), limit=0.13, held_out=0.01)
    found = run_plan(bench, bench.uniform)
    assert found.accepted is not None
    assert float32_nodes(found.accepted) > {"node 0", "node 1", "node 2", "node 3"}
    divergences = [look.divergence for look in bench.looks]
    assert 1 < len(divergences) < 6
    assert divergences == sorted(divergences, reverse=True)
    assert found.accepted == bench.looks[-1]


def test_a_ladder_ends_in_float32_and_moves_can_be_undone() -> None:
    ladder = make_ladder([sensitivity("int8", NODES)], {"int8": 0.5})
    assert ladder.after(len(ladder.moves)) == {}
    assert [move.node for move in ladder.moves] == list(NODES)
    assert undone(ladder.after(3), ladder.moves[1]) == {
        name: "int8" for name in NODES if name not in ("node 0", "node 2")
    }
    assert ladder.raised({"node 5": "int8", "node 9": "int8"}, 1) == {"node 9": "int8"}
    by_size = make_ladder([sensitivity("int8", NODES)], None)
    assert by_size.moves[0].price == pytest.approx(0.75 / 16)


# Limits and splits


def evaluation(metric: str) -> Evaluation:
    return Evaluation("text-classification", (), (), "", metric, metric)


def test_limits_are_drops_or_values() -> None:
    accuracy, perplexity, missing = evaluation("accuracy"), evaluation("perplexity"), float("nan")
    assert Limit(1.0, None).holds(accuracy, 90.0, 89.0)
    assert not Limit(1.0, None).holds(accuracy, 90.0, 88.9)
    assert not Limit(1.0, None).holds(accuracy, 90.0, missing)
    assert Limit(None, 85.0).holds(accuracy, 90.0, 85.0)
    assert not Limit(None, 85.0).holds(accuracy, 90.0, 84.9)
    assert not Limit(None, 85.0).holds(accuracy, 90.0, missing)
    assert not Limit(1.0, 85.0).holds(accuracy, 90.0, 86.0)
    assert Limit(2.0, None).holds(perplexity, 50.0, 50.9)
    assert not Limit(2.0, None).holds(perplexity, 50.0, 51.1)
    assert Limit(None, 52.0).holds(perplexity, 50.0, 52.0)
    assert not Limit(None, 52.0).holds(perplexity, 50.0, 52.1)


def test_halves_share_no_example_and_are_always_the_same(tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("".join(f"text {index}\t{'ab'[index % 2]}\n" for index in range(101)))
    data = read_evaluation([path], "text-classification", ("a", "b"))
    halves = split(data)
    assert halves is not None
    one, other = ({example.texts[0] for example in half.examples} for half in (halves.search, halves.held_out))
    assert (len(one), len(other)) == (50, 51)
    assert not one & other
    assert split(data) == halves
    assert halves.search.sha256 != halves.held_out.sha256
    assert split(data.subset([0, 1, 2])) is None


def test_texts_of_decoders_are_cut_into_pieces() -> None:
    text = "".join(f"line {index} of a long text that goes on\n" for index in range(1000))
    halves = split(Evaluation("text-generation", (Passage(text),), ("a",), "0", "perplexity", "perplexity"))
    assert halves is not None
    pieces = [example.texts for half in (halves.search, halves.held_out) for example in half.examples]
    assert len(pieces) > 10
    assert sorted(line for piece in pieces for line in piece) == sorted(text.splitlines())


def test_times_are_written_with_units() -> None:
    assert [_seconds(text) for text in ("90s", "5m", "1.5h", "0", "20")] == [90, 300, 5400, 0, 20]
    with pytest.raises(InvalidInputError, match="'soon' is none"):
        _seconds("soon")


# Exports


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A tiny classifier that plain int8 ruins."""
    folder = tmp_path_factory.mktemp("hard")
    return make_hard(train_tiny(folder / "plain"), folder / "hard")


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that follow from the mixture alone: such a tiny model takes as long in float32 on a busy machine. Plain
    int8 is all there is to mix, as on a processor with VNNI, whichever this one is."""

    def times(bench: TrialBench, graph: Any) -> list[float]:
        return [1.0, 1.0 - 0.02 * len(bench._written or ())]

    parts = step._parts
    for module in (step, encoder_precisions):
        monkeypatch.setattr(module, "describe_machine", lambda: VNNI)
    monkeypatch.setattr(TrialBench, "_time", times)
    monkeypatch.setattr(TrialBench, "add_part", lambda bench, name, depends_on, write: None)
    monkeypatch.setattr(
        step, "_parts", lambda state: {name: part for name, part in parts(state).items() if name == "int8"}
    )


def export(model: Classifier, folder: Path, **options: Any) -> onnxpress.ExportResult:
    config = {
        "variants": ("fp32", "int8"),
        "evaluation": (model.evaluation,),
        "measure": "none",
        "max_accuracy_drop": 1.0,
    }
    return onnxpress.export(model.folder, folder / "bundle", onnxpress.ExportConfig(**{**config, **options}))


@pytest.mark.usefixtures("steady")
def test_a_model_that_int8_ruins_gets_a_mixture_that_holds(hard: Classifier, tmp_path: Path) -> None:
    result = export(hard, tmp_path)
    found = result.report["search"]
    plain, *mixtures = found["trials"]
    assert (plain["name"], plain["holds"]) == ("int8", False)
    assert plain["drop"] > 5
    assert found["accepted"]["variant"] == "mixed"
    accepted = next(trial for trial in mixtures if trial["name"] == found["accepted"]["trial"])
    assert accepted["speedup"] > 1
    assert accepted["drop"] <= 1
    assert accepted["divergence"] < plain["divergence"]
    assert 0 < accepted["nodes"]["fp32"] < plain["nodes"]["int8"]
    held_out = found["held_out"]
    assert held_out["holds"]
    assert held_out["held_out"]["drop"] <= 1
    assert held_out["held_out"]["samples"] + held_out["search"]["samples"] == result.report["evaluation"]["samples"]
    low, high = held_out["held_out"]["interval"]
    assert low <= -held_out["held_out"]["drop"] <= high
    assert "mixed loses at most 1 point on both parts" in found["sentence"]
    variants = {variant["name"]: variant for variant in result.report["variants"]}
    assert variants["mixed"]["status"] == "passed"
    assert variants["mixed"]["accuracy_drop"] <= 1
    assert variants["int8"]["status"] == "failed"
    assert result.manifest.default_variant == "mixed"
    (sensitivity_,) = result.report["sensitivity"]["precisions"]
    worst = max(sensitivity_["nodes"], key=lambda one: one["divergence"])
    assert worst["module"].endswith("attention.output.dense")  # reads the channels that were enlarged
    assert worst["node"] in accepted["float32_nodes"]
    assert not [path for path in result.folder.iterdir() if path.name.startswith("trial")]
    model = onnxpress.load(result.folder, variant="mixed")
    assert len(model.classify(["a b c", "x y z"])) == 2
    assert json.loads(json.dumps(result.summary()))["search"]["accepted"] == found["accepted"]

    # What was tried is known from then on, also with no time at all and for another limit.
    again = export(hard, tmp_path, search_budget=0.0, force=True).report["search"]
    assert again["trials"] == found["trials"]
    assert again["accepted"] == found["accepted"]
    least = export(hard, tmp_path, max_accuracy_drop=None, min_metric=90.0, force=True)
    assert least.report["search"]["limit"] == {"max_accuracy_drop": None, "min_metric": 90.0}
    assert least.report["search"]["accepted"]["variant"] == "mixed"
    assert least.report["search"]["held_out"]["held_out"]["metric"] >= 90.0
    assert least.report["max_accuracy_drop"] is None
    with pytest.raises(InvalidInputError, match="min_metric is 100, and the model has"):
        export(hard, tmp_path, max_accuracy_drop=None, min_metric=100.0, force=True)


@pytest.mark.usefixtures("steady")
def test_nodes_that_make_what_is_no_number_are_in_the_report(
    hard: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*given: Any, **options: Any) -> Sensitivity:
        found = measure_sensitivity(*given, **options)
        first, *others = found.nodes
        first = dataclasses.replace(first, divergence=math.inf)
        return dataclasses.replace(found, divergence=math.inf, nodes=(first, *others))

    monkeypatch.setattr(trials, "measure_sensitivity", measure)
    monkeypatch.setenv("ONNXPRESS_CACHE", str(tmp_path / "cache"))
    (found,) = export(hard, tmp_path).report["sensitivity"]["precisions"]
    assert found["divergence"] is None
    assert [node["divergence"] is None for node in found["nodes"]] == [True, *[False] * (len(found["nodes"]) - 1)]


@pytest.mark.usefixtures("steady")
def test_where_nothing_holds_float32_is_the_answer(
    hard: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limit, "holds", lambda limit, data, before, after: False)
    result = export(hard, tmp_path)
    found = result.report["search"]
    assert found["accepted"] is None
    assert "none loses at most 1 point and is cheaper than float32: float32 is the answer" in found["sentence"]
    assert result.manifest.default_variant == "fp32"


@pytest.mark.usefixtures("steady")
def test_a_uniform_graph_that_wins_is_the_variant_it_is(
    hard: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialBench, "_failure", lambda bench, assignment: None)
    thresholds = onnxpress.exporter.config.Thresholds(int8_rms=1.0)
    result = export(hard, tmp_path, max_accuracy_drop=60.0, thresholds=thresholds)
    assert result.report["search"]["accepted"] == {"trial": "int8", "variant": "int8"}
    assert [variant["name"] for variant in result.report["variants"]] == ["fp32", "int8"]
    assert result.manifest.default_variant == "int8"


def test_where_size_counts_embedding_tables_get_fewer_bits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = EmbeddingConfig(smallest_bytes=0)  # those of so tiny a model would be left alone
    monkeypatch.setattr(step, "quantize_embedding_tables", partial(quantize_embedding_tables, config=small))
    result = export(train_tiny(tmp_path / "plain"), tmp_path, objective="size", max_accuracy_drop=2.0)
    found = result.report["search"]
    trials = {trial["name"]: trial for trial in found["trials"]}
    assert found["accepted"]["variant"] == "mixed"
    accepted = trials[found["accepted"]["trial"]]
    assert accepted["nodes"]["int8-tables"] >= 1
    assert accepted["size_bytes"] == min(trial["size_bytes"] for trial in trials.values() if trial["holds"])
    sizes = {variant["name"]: variant["size_bytes"] for variant in result.report["variants"]}
    assert sizes["mixed"] < sizes["int8"] < sizes["fp32"]
    assert result.manifest.default_variant == "mixed"


def test_with_too_few_examples_nothing_is_searched(hard: Classifier, tmp_path: Path) -> None:
    (tmp_path / "few.tsv").write_text("a b c\tnegative\nx y z\tpositive\n")
    result = export(Classifier(hard.folder, tmp_path / "few.tsv"), tmp_path, max_accuracy_drop=100.0)
    assert result.report["search"]["sentence"].startswith("Nothing was searched: the evaluation has too few examples")
    assert "Nothing was searched" in (result.folder / "report.html").read_text()


def test_without_an_accuracy_asked_for_nothing_is_searched(tiny_bundle: Path) -> None:
    report = json.loads((tiny_bundle / "report.json").read_text())
    assert (report["search"], report["sensitivity"]) == (None, None)


def test_a_least_metric_needs_examples(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="min_metric needs labelled examples"):
        onnxpress.export(tiny_model, tmp_path / "bundle", onnxpress.ExportConfig(min_metric=80.0))


@pytest.mark.slow
def test_a_trained_model_that_int8_ruins_gets_a_mixture_that_holds(tmp_path: Path) -> None:
    plain = minilm()
    if plain is None:
        pytest.skip("the shared models are not beside the project")
    result = export(make_hard(plain, tmp_path / "hard"), tmp_path)
    found = result.report["search"]
    trials = {trial["name"]: trial for trial in found["trials"]}
    plain_int8 = trials.keys() & {"int8", "int8-7bit", "int8-unsigned"}  # which there are depends on the processor
    assert plain_int8
    assert all(trials[name]["drop"] > 5 for name in plain_int8)
    if found["accepted"] is None:  # where 8 bits are no faster than float32, chance decides whether a mixture is
        assert max((trial["speedup"] for trial in trials.values() if trial["holds"]), default=0) < 1.1
        return
    assert trials[found["accepted"]["trial"]]["holds"]
    assert found["held_out"]["held_out"]["drop"] <= 1
    variants = {variant["name"]: variant for variant in result.report["variants"]}
    assert variants[found["accepted"]["variant"]]["accuracy_drop"] <= 1
