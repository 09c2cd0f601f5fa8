"""The documents name what is there, and nothing that is not."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxpress.runtime import manifest
from onnxpress.runtime.machine import Machine
from tests.report_fixtures import full_report
from tools.make_cli_docs import DOCUMENT, render

ROOT = Path(__file__).parent.parent


def test_the_command_line_page_is_current() -> None:
    assert DOCUMENT.read_text() == render(), "run make docs"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    missing = {path for path in listed if not (ROOT / path).exists()}
    assert not missing
    packages = ("exporter", "quantize", "runtime")
    modules = {f"{package}/{path.name}" for package in packages for path in (ROOT / package).glob("*.py")}
    folders = {f"{path.relative_to(ROOT)}/" for package in packages for path in (ROOT / package).glob("*/__init__.py")}
    assert {module for module in modules if not module.endswith("__init__.py")} <= listed
    assert {folder.replace("/__init__.py/", "/") for folder in folders} <= listed


def test_the_readme_names_the_commands_that_continuous_integration_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


MANIFEST_CLASSES = [
    entry
    for entry in vars(manifest).values()
    if isinstance(entry, type) and dataclasses.is_dataclass(entry) and entry.__module__ == manifest.__name__
]


@pytest.mark.parametrize("cls", [*MANIFEST_CLASSES, Machine], ids=lambda cls: cls.__name__)
def test_every_key_of_the_manifest_is_documented(cls: Any) -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "bundle.md").read_text()))
    assert {field.name for field in dataclasses.fields(cls)} <= named


def test_every_key_of_the_report_is_documented(tiny_bundle: Path) -> None:
    named = set(re.findall(r"`([a-z0-9_]+)`", (ROOT / "docs" / "bundle.md").read_text()))
    free = {"versions", "counts"}  # names of packages and operators
    real = json.loads((tiny_bundle / "report.json").read_text())
    assert set(keys(real, free)) <= named
    assert set(keys(full_report(), free)) <= named


def keys(value: Any, free: set[str]) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key not in free:
                yield from keys(inner, free)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, free)


@pytest.mark.parametrize(
    "page", [*sorted(path.name for path in (ROOT / "docs").glob("*.md")), "../README.md", "../examples/README.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
