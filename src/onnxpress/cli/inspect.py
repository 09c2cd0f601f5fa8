"""`onnxpress inspect BUNDLE`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.runtime.bundle import Bundle

HELP = "Show what a bundle holds, and check that nothing in it was changed."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--verify", action="store_true", help="hash every file and compare with the manifest")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the manifest for people or for programs."""
    from onnxpress.runtime.bundle import open_bundle

    bundle = open_bundle(arguments.bundle, verify=arguments.verify)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(bundle.manifest), ensure_ascii=False))
    else:
        _show(bundle)
    if arguments.verify:
        count = len(bundle.manifest.files)
        print(f"verified: {count} files have the content they were sealed with", file=sys.stderr)
    return 0


def _show(bundle: Bundle) -> None:
    manifest = bundle.manifest
    print(f"{manifest.source.name}  ({manifest.architecture}, {manifest.task})")
    print(f"  source       {manifest.source.location}{f' @ {r}' if (r := manifest.source.revision) else ''}")
    print(f"  weights      sha256 {manifest.source.weights_sha256[:16]}...")
    print(
        f"  manifest     sha256 {bundle.manifest_sha256[:16]}..., schema {manifest.schema_version}, {manifest.created}"
    )
    print(f"  tokens       {manifest.tokenizer.max_length} at most")
    if manifest.embedding:
        print(f"  modules      {' > '.join(manifest.embedding.modules)}, dimension {manifest.embedding.dimension}")
        if manifest.embedding.prompts:
            print(f"  prompts      {', '.join(manifest.embedding.prompts)}")
    for kind, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        described = (f"{tensor.name} {tensor.type}[{', '.join(tensor.shape)}]" for tensor in tensors)
        print(f"  {kind:<12} {', '.join(described)}")
    machine = manifest.machine
    print(f"  measured on  {machine.get('cpu')}, {machine.get('cores')} cores")
    print(f"  default      {manifest.default_variant}: {manifest.default_reason}")
    print()
    print("  variant   target    status      accuracy  agreement  latency ms  texts/s   size MB")
    for variant in manifest.variants:
        figures = (
            _number(variant.accuracy, 8, ".2f"),
            _number(variant.agreement, 9, ".5f"),
            _number(variant.latency_ms, 10, ".2f"),
            _number(variant.texts_per_second, 7, ",.0f"),
            _number(variant.size_bytes / 1e6, 8, ".1f"),
        )
        print(f"  {variant.name:<9} {variant.target:<9} {variant.status:<10}  {'  '.join(figures)}")


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
