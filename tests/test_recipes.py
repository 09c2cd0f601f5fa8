"""Recipes and the evaluation data beside them; each recipe presses a tiny model of its architecture."""

from __future__ import annotations

import collections
import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxpress
from onnxpress.exporter import ExportConfig, source
from onnxpress.exporter import recipe as recipe_module
from onnxpress.exporter.hub import Fetched
from onnxpress.exporter.recipe import Recipe, read_recipe, recipe_names
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.evaluation import read_evaluation
from onnxpress.runtime.paths import models_folder
from onnxpress.runtime.tasks import TASKS
from tests.recipe_models import make_recipe_model
from tools.make_recipe_docs import DOCUMENT, render

ROOT = Path(__file__).parent.parent
NAMES = recipe_names()
DATA = sorted(path.name for path in models_folder().iterdir() if path.suffix in (".tsv", ".jsonl", ".conll"))


def get(name: str) -> Recipe:
    recipe = read_recipe(name)
    assert recipe is not None
    return recipe


def rows(name: str) -> list[list[str]]:
    """A TSV file without its header."""
    return [line.split("\t") for line in (models_folder() / name).read_text(encoding="utf-8").splitlines()[1:]]


def objects(name: str) -> list[dict[str, Any]]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in (models_folder() / name).read_text(encoding="utf-8").splitlines()]


# --- the recipes ---


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_must(name: str) -> None:
    recipe = get(name)
    assert recipe.name == name
    assert recipe.task in TASKS
    assert recipe.source.hub.count("/") == 1
    assert recipe.description.endswith(".")
    assert recipe.parameters_millions > 0
    assert recipe.export.evaluation
    labelled = ("text-classification", "zero-shot-classification", "token-classification")
    assert (recipe.labels is not None) == (recipe.task in labelled)
    assert not recipe.prompts or recipe.task == "feature-extraction"


def test_every_task_has_a_recipe_and_no_model_has_two() -> None:
    recipes = [get(name) for name in NAMES]
    assert {recipe.task for recipe in recipes} == set(TASKS)
    hubs = collections.Counter(recipe.source.hub for recipe in recipes)
    assert not [hub for hub, count in hubs.items() if count > 1]


def test_the_page_of_recipes_is_current() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    assert page == render(page), "run python tools/make_recipe_docs.py"
    for name in DATA:
        assert f"`{name}`" in page


def test_what_the_command_leaves_open_comes_from_the_recipe() -> None:
    recipe = get("distilbert-sst-2")
    config = recipe.apply(ExportConfig())
    assert config.task == "text-classification"
    assert config.variants == ("fp32", "fp16", "int8")
    assert config.evaluation == (models_folder() / "sentiment.tsv",)
    assert config.max_accuracy_drop == 2.0


def test_what_the_command_says_goes_before_the_recipe(tmp_path: Path) -> None:
    given = ExportConfig(task="fill-mask", variants=("int8",), evaluation=(tmp_path / "own.tsv",), max_accuracy_drop=0)
    config = get("distilbert-sst-2").apply(given)
    assert (config.task, config.variants) == ("fill-mask", ("int8",))
    assert (config.evaluation, config.max_accuracy_drop) == (given.evaluation, 0)


def test_variants_of_the_recipe_are_for_the_cpu() -> None:
    assert get("distilbert-sst-2").apply(ExportConfig(target="cuda")).variants is None


SST = {"model_type": "distilbert", "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"model_type": "roberta"}, "has the model_type 'roberta' now"),
        ({"model_type": None}, "has the model_type None now"),
        ({"id2label": {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}}, "has NEGATIVE, NEUTRAL, POSITIVE now"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "has LABEL_0, LABEL_1 now"),
        ({"id2label": None}, "has no names of labels now"),
    ],
)
def test_a_model_that_is_another_one_is_refused(changed: dict[str, object], part: str) -> None:
    get("distilbert-sst-2").check(SST)
    with pytest.raises(UnsupportedModelError, match=re.escape(part)):
        get("distilbert-sst-2").check(SST | changed)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('name = "x"\ntasks = "fill-mask"\n', "tasks: unknown key"),
        ('name = "x"\n', "description: missing"),
        ('name = "x"\nprompts = { query = 3 }\n', "missing"),
        ("name = \n", "line 1"),
    ],
)
def test_a_broken_recipe_is_named(text: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.toml").write_text(text)
    monkeypatch.setattr(recipe_module, "models_folder", lambda: tmp_path)
    with pytest.raises(InvalidInputError, match=f"x.toml is broken: .*{part}"):
        read_recipe("x")


# --- the evaluation data ---


@pytest.mark.parametrize("name", NAMES)
def test_the_evaluation_of_a_recipe_can_be_read(name: str) -> None:
    recipe = get(name)
    for file in recipe.export.evaluation or ():
        evaluation = read_evaluation([models_folder() / file], recipe.task, recipe.labels or ())
        assert len(evaluation.examples) >= 40


def test_one_wrong_answer_is_not_too_many() -> None:
    for name in NAMES:
        recipe = get(name)
        if recipe.task not in ("feature-extraction", "token-classification", "text-ranking"):
            paths = [models_folder() / file for file in recipe.export.evaluation or ()]
            examples = read_evaluation(paths, recipe.task, recipe.labels or ()).examples
            assert (recipe.export.max_accuracy_drop or 0) > 100 / len(examples), name


def test_every_file_is_used_and_installed() -> None:
    assert {file for name in NAMES for file in get(name).export.evaluation or ()} == set(DATA)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["onnxpress.models"]
    left_out = [name for name in DATA if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert not left_out


@pytest.mark.parametrize("name", [name for name in DATA if name.endswith(".tsv")])
def test_tables_are_clean(name: str) -> None:
    header = (models_folder() / name).read_text(encoding="utf-8").splitlines()[0].split("\t")
    found = rows(name)
    assert {len(row) for row in found} == {len(header)}
    assert all(cell and cell == cell.strip() for row in found for cell in row)
    without_label = [
        tuple(cell for cell, column in zip(row, header, strict=True) if column != "label") for row in found
    ]
    assert not [row for row, count in collections.Counter(without_label).items() if count > 1]


@pytest.mark.parametrize("name", ["sentiment.tsv", "sentiment_multilingual.tsv", "nli.tsv"])
def test_every_label_is_equally_frequent(name: str) -> None:
    assert len(set(collections.Counter(row[-1] for row in rows(name)).values())) == 1


@pytest.mark.parametrize("name", ["sentence_pairs.tsv", "pairs_multilingual.tsv"])
def test_scores_of_pairs_cover_the_scale(name: str) -> None:
    scores = [float(row[0]) for row in rows(name)]
    assert all(0 <= score <= 5 for score in scores)
    assert min(collections.Counter(min(int(score), 4) for score in scores).values()) >= len(scores) / 8


def test_tags_of_entities_are_well_formed() -> None:
    sentences = (models_folder() / "entities.conll").read_text(encoding="utf-8").split("\n\n")
    begun: collections.Counter[str] = collections.Counter()
    for sentence in sentences:
        before = "O"
        for line in sentence.strip().split("\n"):
            _, tag = line.split("\t")
            assert re.fullmatch(r"O|[BI]-(PER|ORG|LOC|MISC)", tag)
            assert not tag.startswith("I-") or before[1:] == tag[1:], line
            begun[tag] += tag.startswith("B-")
            before = tag
    assert len(set(sentences)) == len(sentences) == 100
    assert min(begun[f"B-{kind}"] for kind in ("PER", "ORG", "LOC", "MISC")) >= 30


def test_answers_are_parts_of_their_texts() -> None:
    questions = objects("questions.jsonl")
    assert len({row["question"] for row in questions}) == len(questions) == 80
    assert sum(not row["answers"] for row in questions) == 20
    for row in questions:
        assert all(answer in row["context"] for answer in row["answers"]), row["question"]


def test_rankings_have_right_and_wrong_passages() -> None:
    rankings = objects("rankings.jsonl")
    assert len({row["query"] for row in rankings}) == len(rankings) == 40
    for row in rankings:
        passages = row["positive"] + row["negative"]
        assert len(set(passages)) == len(passages), row["query"]
        assert len(row["positive"]) in (1, 2)
        assert len(row["negative"]) == 10


def test_every_gap_takes_one_word() -> None:
    for text, target in rows("masked_words.tsv"):
        assert text.count("[MASK]") == 1
        assert target.isalpha()


# --- from the recipe's name to a bundle ---

QUICK = ("bge-small-en-v1.5", "distilbert-sst-2")
FP32 = ExportConfig(variants=("fp32",), measure="none")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A stand-in for the hub: folders by their ids, to be filled by the test."""
    folders: dict[str, Path] = {}

    def fetch_model(hub_id: str, *arguments: object) -> Fetched:
        return Fetched(folders[hub_id], "0" * 40)

    monkeypatch.setattr(source, "fetch_model", fetch_model)
    monkeypatch.setattr(Recipe, "installed_folder", lambda recipe: None)
    return folders


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_recipe_presses_a_model_of_its_architecture(name: str, tmp_path: Path, hub: dict[str, Path]) -> None:
    recipe = get(name)
    words = [row[1] for row in rows("masked_words.tsv")] if recipe.task == "fill-mask" else []
    hub[recipe.source.hub] = make_recipe_model(tmp_path / "model", recipe, words)
    result = onnxpress.export(name, tmp_path / "bundle", FP32)

    manifest = result.manifest
    assert (manifest.source.name, manifest.task) == (name, recipe.task)
    assert [(variant.name, variant.status) for variant in manifest.variants] == [("fp32", "passed")]
    assert manifest.variants[0].accuracy == pytest.approx(result.report["baseline"]["accuracy"], abs=0.1)
    assert result.report["evaluation"]["files"] == list(recipe.export.evaluation or ())
    if recipe.labels is not None:
        assert manifest.labels is not None
        assert manifest.labels.names == recipe.labels
    model = onnxpress.load(result.folder)
    if recipe.task == "feature-extraction":
        assert manifest.embedding is not None
        assert manifest.embedding.prompts == {"query": "", "document": ""} | recipe.prompts
        for prompt_name, prompt in recipe.prompts.items():
            found = model.embed("where is my parcel?", prompt_name=prompt_name)
            np.testing.assert_allclose(found, model.embed(f"{prompt}where is my parcel?"), atol=1e-6)


def test_prompts_of_a_recipe_are_not_kept_for_the_model_alone(tmp_path: Path, hub: dict[str, Path]) -> None:
    recipe = get("bge-small-en-v1.5")
    hub[recipe.source.hub] = make_recipe_model(tmp_path / "model", recipe)
    for name, prompts in (("bge-small-en-v1.5", recipe.prompts), (recipe.source.hub, {})):
        manifest = onnxpress.export(name, tmp_path / name, FP32).manifest
        assert manifest.embedding is not None
        assert manifest.embedding.prompts == {"query": "", "document": ""} | prompts


def test_a_recipe_whose_model_became_another_one_stops(tmp_path: Path, hub: dict[str, Path]) -> None:
    hub[get("bge-small-en-v1.5").source.hub] = make_recipe_model(tmp_path / "model", get("all-mpnet-base-v2"))
    with pytest.raises(UnsupportedModelError, match=r"is for a bert, but .* has the model_type 'mpnet'"):
        onnxpress.export("bge-small-en-v1.5", tmp_path / "bundle", FP32)
    assert not (tmp_path / "bundle").exists()
