"""Recipes: models this project vouches for, one TOML file each in `models/`, read into a dataclass.

Does not look for the model itself: that is source.py. docs/recipes.md says how to write one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxpress.exporter.config import ExportConfig, Thresholds
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError
from onnxpress.runtime.paths import models_folder


@dataclasses.dataclass(frozen=True)
class RecipeSource:
    """Where the weights are: an installed Python package that carries them, else the hub."""

    hub: str
    python_package: str | None = None
    python_package_folder: str = ""


@dataclasses.dataclass(frozen=True)
class RecipeExport:
    """Options the model is exported with unless others are given."""

    variants: tuple[str, ...] | None = None
    evaluation: tuple[str, ...] | None = None
    """Files beside the recipe."""
    max_accuracy_drop: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One file of `models/`."""

    name: str
    """What `onnxpress export` is given; the file is called the same."""
    description: str
    """What the model is for, in a sentence."""
    task: str
    language: str
    licence: str
    """Of the weights: an SPDX identifier."""
    parameters_millions: float
    model_type: str
    """The architecture, in the words of the model's config.json."""
    source: RecipeSource
    labels: tuple[str, ...] | None = None
    """Names of the labels in the model's config.json, in any order; None: the model has none, or they do not matter."""
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Text put before a text, by the name of its use, where the model's card asks for it and its folder does not say
    so. Goes before what the folder says."""
    export: RecipeExport = RecipeExport()
    thresholds: Thresholds = Thresholds()

    def installed_folder(self) -> Path | None:
        """The model folder inside the installed Python package, without importing it; None if not installed."""
        if self.source.python_package is None:
            return None
        spec = importlib.util.find_spec(self.source.python_package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / self.source.python_package_folder
            if folder.is_dir():
                return folder
        return None

    def check(self, model_config: Mapping[str, Any]) -> None:
        """Refuse a model that is not the one the recipe was written for.

        Args:
            model_config: the content of the model's config.json.

        Raises:
            UnsupportedModelError: its architecture or its labels are others.
        """
        found = model_config.get("model_type")
        if found != self.model_type:
            raise UnsupportedModelError(
                f"the recipe {self.name} is for a {self.model_type}, but {self.source.hub} has the model_type {found!r}"
                " now; export it by its hub id, with --task"
            )
        names = model_config.get("id2label")
        labels = {str(name) for name in names.values()} if isinstance(names, dict) else set()
        if self.labels is not None and labels != set(self.labels):
            raise UnsupportedModelError(
                f"the recipe {self.name} is for the labels {', '.join(self.labels)}, but {self.source.hub} has "
                f"{', '.join(sorted(labels)) or 'no names of labels'} now; export it by its hub id, with --task"
            )

    def apply(self, config: ExportConfig) -> ExportConfig:
        """The config with what it leaves open filled in from the recipe."""
        variants = config.variants
        if variants is None and config.target == "cpu":
            variants = self.export.variants
        evaluation = config.evaluation
        if evaluation is None and self.export.evaluation is not None:
            evaluation = tuple(models_folder() / name for name in self.export.evaluation)
        drop = config.max_accuracy_drop if config.max_accuracy_drop is not None else self.export.max_accuracy_drop
        return dataclasses.replace(
            config,
            task=config.task or self.task,
            variants=variants,
            evaluation=evaluation,
            max_accuracy_drop=drop,
            thresholds=config.thresholds or self.thresholds,
        )


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return sorted(path.stem for path in models_folder().glob("*.toml"))


def read_recipe(name: str) -> Recipe | None:
    """The recipe called `name`, or None if there is none.

    Raises:
        InvalidInputError: the file is broken; the text names the file and the place.
    """
    if name not in recipe_names():
        return None
    path = models_folder() / f"{name}.toml"
    try:
        return decode(Recipe, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise InvalidInputError(f"the recipe {path} is broken: {error}") from error
