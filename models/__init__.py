"""Recipes: one TOML file per model that onnxpress vouches for, with the evaluation pairs beside it.

Data only: the files are read through ``importlib.resources``, and there is no code here.
"""

from __future__ import annotations

if __name__ != "onnxpress.models":
    # The recipes are found through the package's one name, wherever it is installed.
    raise ImportError(f"this is the package onnxpress.models: import it by that name, not as {__name__!r}")
