"""Which ONNX file of a folder is the model, and which files its weights are in. Does not look at the graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnxpress.runtime.errors import InvalidBundleError, UnsupportedModelError
from onnxpress.runtime.onnx_files import external_data_locations
from onnxpress.runtime.paths import is_inside

_PLACES = ("model.onnx", "onnx/model.onnx")
"""Where optimum and the models of the hub have it."""


def find_model(folders: Sequence[Path]) -> Path | None:
    """The first `model.onnx` or `onnx/model.onnx` of the folders."""
    return next((folder / place for folder in folders for place in _PLACES if (folder / place).is_file()), None)


def list_models(folder: Path) -> list[str]:
    """Every ONNX file of a folder and of its subfolder `onnx`, as relative paths."""
    found = (*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx"))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def weight_files(model: Path) -> dict[str, Path]:
    """The files an ONNX file has weights in beside its own, by the name it gives them.

    Raises:
        UnsupportedModelError: the ONNX file is broken, or one of those is missing or outside its folder.
    """
    try:
        locations = sorted(external_data_locations(model))
    except InvalidBundleError as error:
        raise UnsupportedModelError(
            f"{model} is truncated or not an ONNX file ({error.__cause__}); download or export it again"
        ) from error
    # In the hub's cache files are links to one folder of contents; the weights then lie beside what the model links to.
    folders = (model.parent.resolve(), model.resolve().parent)
    found = {}
    for location in locations:
        path = model.parent / location
        if not is_inside(location) or not any(path.resolve().is_relative_to(folder) for folder in folders):
            raise UnsupportedModelError(
                f"{model} reads weights from {location[:200]!r}, outside its folder; do not use it"
            )
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
            raise UnsupportedModelError(
                f"{model} has its weights in {location[:200]!r}, which is missing; put that file beside it"
            )
        found[location] = path.resolve()
    return found
