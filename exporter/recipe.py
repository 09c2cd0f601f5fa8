"""Recipes: models this project vouches for, one TOML file each in `models/`, read into a dataclass."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import tomllib
from pathlib import Path

from onnxpress.exporter.config import ExportConfig, Thresholds
from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError


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
    description: str
    task: str
    source: RecipeSource
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

    def apply(self, config: ExportConfig) -> ExportConfig:
        """The config with what it leaves open filled in from the recipe."""
        variants = config.variants
        if variants is None and config.target == "cpu":
            variants = self.export.variants
        evaluation = config.evaluation
        if evaluation is None and self.export.evaluation is not None:
            evaluation = tuple(recipes_folder() / name for name in self.export.evaluation)
        drop = config.max_accuracy_drop if config.max_accuracy_drop is not None else self.export.max_accuracy_drop
        return dataclasses.replace(
            config,
            task=config.task or self.task,
            variants=variants,
            evaluation=evaluation,
            max_accuracy_drop=drop,
            thresholds=config.thresholds or self.thresholds,
        )


def recipes_folder() -> Path:
    """The folder of recipes, as installed."""
    return Path(str(importlib.resources.files("onnxpress.models")))


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def read_recipe(name: str) -> Recipe | None:
    """The recipe called `name`, or None if there is none.

    Raises:
        InvalidInputError: the file is broken; the text names the file and the place.
    """
    if name not in recipe_names():
        return None
    path = recipes_folder() / f"{name}.toml"
    try:
        return decode(Recipe, tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise InvalidInputError(f"the recipe {path} is broken: {error}") from error
