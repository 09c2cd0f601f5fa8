"""What is compared: a bundle's variant, or a model that the exporter makes a side of (exporter/comparing.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from onnxpress.runtime.bundle import open_bundle
from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.manifest import LabelSettings, TaskSettings
from onnxpress.runtime.measuring import variant_command
from onnxpress.runtime.paths import MANIFEST_NAME
from onnxpress.runtime.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the models that are compared. Nothing of it is loaded until it is asked for."""

    name: str
    kind: Literal["bundle", "checkpoint"]
    location: str
    """What the user typed."""
    variant: str | None
    """Of a bundle."""
    task: str
    labels: LabelSettings | None
    size_bytes: int
    load: Callable[[int], Any]
    """CPU threads to the model: what `onnxpress.load` gives, or what does the same."""
    command: Callable[[int], list[str]]
    """CPU threads to the command line of a process that measures it (runtime/workers.py)."""
    describe: Callable[[], tuple[Tokenizer, TaskSettings]]
    """What texts to measure on are made with."""


def bundle_side(given: str) -> Side | None:
    """The side that `BUNDLE` or `BUNDLE:variant` names, or None if there is no bundle of that name.

    Raises:
        InvalidBundleError: the bundle is broken, or has no such variant.
    """
    folder, variant = Path(given), None
    if not _is_bundle(folder):
        before, colon, after = given.rpartition(":")
        if not colon or not _is_bundle(Path(before)):
            return None
        folder, variant = Path(before), after
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    chosen = manifest.variant(variant)

    def load_variant(threads: int) -> Any:
        from onnxpress.runtime.model import load

        return load(folder, variant=chosen.name, threads=threads)

    def describe() -> tuple[Tokenizer, TaskSettings]:
        return Tokenizer(bundle.path_of(manifest.tokenizer.file), manifest.tokenizer), manifest.settings

    return Side(
        name=f"{folder.resolve().name}:{chosen.name}",
        kind="bundle",
        location=given,
        variant=chosen.name,
        task=manifest.task,
        labels=manifest.labels,
        size_bytes=chosen.size_bytes,
        load=load_variant,
        command=lambda threads: variant_command(folder, chosen.name, threads),
        describe=describe,
    )


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()


def check_sides(sides: Sequence[Side]) -> list[Side]:
    """The sides under names of their own, if they can be compared.

    Raises:
        InvalidInputError: fewer than two, or they do different tasks or have different labels.
    """
    if len(sides) < 2:
        raise InvalidInputError("there is nothing to compare with; give at least two bundles or variants")
    base = sides[0]
    for side in sides[1:]:
        if side.task != base.task:
            raise InvalidInputError(
                f"{side.location} is for {side.task}, {base.location} for {base.task}; only models for the same task "
                "can be compared"
            )
        _check_labels(base, side)
    return _with_own_names(sides)


def _check_labels(base: Side, side: Side) -> None:
    if base.labels is None or side.labels is None or base.task == "text-ranking":  # its one label has no meaning
        return
    ours, theirs = set(base.labels.names), set(side.labels.names)
    if ours != theirs:
        apart = sorted(ours ^ theirs)
        listed = ", ".join(apart[:6]) + ", ..." * (len(apart) > 6)
        raise InvalidInputError(
            f"{side.location} and {base.location} have different labels, so their answers cannot be compared; only one "
            f"of them has: {listed}"
        )
    if base.labels.function != side.labels.function:
        raise InvalidInputError(
            f"{side.location} makes scores by {side.labels.function}, {base.location} by {base.labels.function}; their "
            "answers mean different things"
        )


def _with_own_names(sides: Sequence[Side]) -> list[Side]:
    """What was typed where the short names are the same, and a number where that is the same too."""
    names = [side.name for side in sides]
    if len(set(names)) < len(names):
        names = [
            f"{side.location}:{side.variant}" if _is_bundle(Path(side.location)) else side.location for side in sides
        ]
    found = []
    for index, (side, name) in enumerate(zip(sides, names, strict=True)):
        times = names[:index].count(name)
        found.append(dataclasses.replace(side, name=f"{name} ({times + 1})" if times else name))
    return found
