"""`onnxpress inspect BUNDLE`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.runtime.bench import Bench
    from onnxpress.runtime.bundle import Bundle
    from onnxpress.runtime.manifest import TaskSettings, Variant

HELP = "Show what a bundle holds, and check that nothing in it was changed."

_WIDTH = 90  # characters that the names of labels may take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--verify", action="store_true", help="hash every file and compare with the manifest")
    parser.add_argument(
        "--placement",
        action="store_true",
        help="load a variant and show which execution provider runs each of its nodes (docs/placement.md)",
    )
    parser.add_argument("--variant", help="the variant of --placement (default: the bundle's default)")
    parser.add_argument(
        "--providers", help="for --placement: execution providers, such as cuda, in order of preference"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the manifest as JSON, with what is known of this machine under `here`; with --placement that alone",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the manifest for people or for programs."""
    from onnxpress.cli.figures import tell_origin
    from onnxpress.runtime.bench import read_bench
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.errors import InvalidInputError

    bundle = open_bundle(arguments.bundle, verify=arguments.verify)
    if arguments.placement:
        return _show_placement(arguments)
    if arguments.variant or arguments.providers:
        raise InvalidInputError("--variant and --providers are for --placement")
    kept = read_bench(bundle)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(bundle.manifest) | _here(bundle, kept), ensure_ascii=False))
    else:
        _show(bundle)
        _show_kept(bundle, kept)
    tell_origin(bundle)
    if kept.problem is not None:
        print(f"onnxpress: {kept.problem}", file=sys.stderr)
    if arguments.verify:
        count = len(bundle.manifest.files)
        print(f"verified: {count} files have the content they were sealed with", file=sys.stderr)
    return 0


def _show_placement(arguments: argparse.Namespace) -> int:
    from onnxpress.cli.figures import log_on_stderr
    from onnxpress.cli.placement import show_placement
    from onnxpress.runtime.model import load

    providers = arguments.providers.split(",") if arguments.providers else None
    with log_on_stderr():
        model = load(arguments.bundle, arguments.variant, providers)
    show_placement(model.placement(), arguments.json)
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
    for name, text in head_facts(manifest.settings):
        print(f"  {name:<12} {text}")
    for kind, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        described = (f"{tensor.name} {tensor.type}[{', '.join(tensor.shape)}]" for tensor in tensors)
        print(f"  {kind:<12} {', '.join(described)}")
    machine = manifest.machine
    print(f"  measured on  {machine.get('cpu')}, {machine.get('cores')} cores")
    if (evaluation := evaluated_on(bundle.report())) is not None:
        print(f"  evaluated on {evaluation}")
    print(f"  default      {manifest.default_variant}: {manifest.default_reason}")
    print()
    rates = writing_rates(bundle.report()) if manifest.task == "text-generation" else None
    _show_variants(manifest.variants, rates)


def _here(bundle: Bundle, kept: Bench) -> dict[str, Any]:
    """What is beside the manifest: how this machine differs from the one of the figures, and figures of this one."""
    from onnxpress.runtime.origin import differences, saturation_warning

    warnings = [saturation_warning(bundle, variant) for variant in bundle.manifest.variants]
    return {
        "here": {
            "differences": list(differences(bundle.manifest)),
            "warnings": [warning for warning in warnings if warning is not None],
            "variants": [dataclasses.asdict(figures) for figures in kept.variants],
        }
    }


def _show_kept(bundle: Bundle, kept: Bench) -> None:
    """The figures of this machine, where `onnxpress bench` measured some."""
    from onnxpress.cli.figures import comparison, table
    from onnxpress.runtime.bench import advice

    if not kept.variants:
        return
    print(f"\n  measured on this machine with onnxpress bench, {max(figures.created for figures in kept.variants)}:")
    rows = comparison(bundle, kept.variants)
    print("\n".join(f"  {line}" for line in table(rows, bundle.manifest.task == "text-generation")))
    if (told := advice(bundle, kept)) is not None:
        print(f"  {told}")


def head_facts(settings: TaskSettings) -> Iterator[tuple[str, str]]:
    """What is particular to the task."""
    if (embedding := settings.embedding) is not None:
        yield "modules", f"{' > '.join(embedding.modules)}, dimension {embedding.dimension}"
        if embedding.prompts:
            yield "prompts", ", ".join(embedding.prompts)
    if (labels := settings.labels) is not None:
        count = f"{len(labels.names)}: " if len(labels.names) > 1 else ""
        yield ("labels" if count else "label"), f"{count}{_shortened(labels.names)}"
        yield "scores", _SCORES[labels.function]
    if (mask := settings.mask) is not None:
        yield "mask", f"{mask.token}, id {mask.id}"


_SCORES = {
    "softmax": "softmax over the labels",
    "sigmoid": "sigmoid of each logit",
    "identity": "the logits as they are",
}


def _shortened(names: Sequence[str]) -> str:
    """As many names as fit a line, at least one, and dots for the rest."""
    count = next((n for n in range(len(names), 1, -1) if len(", ".join(names[:n])) <= _WIDTH), 1)
    return ", ".join(names[:count]) + ", ..." * (count < len(names))


def evaluated_on(report: Mapping[str, Any]) -> str | None:
    """What the accuracy was measured on and by, which report.json says and the manifest does not; None without it."""
    try:
        evaluation = report["evaluation"]
        files = ", ".join(evaluation["files"])
        return f"{files}, {evaluation['samples']:,} examples, by {evaluation['label']}"
    except (ValueError, LookupError, TypeError):  # no evaluation, or no report: a bundle serves without
        return None


def writing_rates(report: Mapping[str, Any]) -> dict[str, float]:
    """New tokens a second that each variant of a decoder writes at best, which report.json says."""
    try:
        variants = report["variants"]
        return {row["name"]: max(float(entry["tokens_per_second"]) for entry in row["throughput"]) for row in variants}
    except (ValueError, LookupError, TypeError):  # as above
        return {}


def _show_variants(variants: Sequence[Variant], rates: Mapping[str, float] | None) -> None:
    """`rates`: of decoders, new tokens a second."""
    time, rate = ("latency ms", "texts/s") if rates is None else ("  first ms", "tokens/s")
    width = max(len("variant"), *(len(variant.name) for variant in variants))
    print(f"  {'variant':<{width}}  target    status      accuracy  agreement  {time}  {rate:>8}   size MB")
    for variant in variants:
        figures = (
            _number(variant.accuracy, 8, ".2f"),
            _number(variant.agreement, 9, ".5f"),
            _number(variant.latency_ms, 10, ".2f"),
            _number(variant.texts_per_second if rates is None else rates.get(variant.name), 8, ",.0f"),
            _number(variant.size_bytes / 1e6, 8, ".1f"),
        )
        print(f"  {variant.name:<{width}}  {variant.target:<9} {variant.status:<10}  {'  '.join(figures)}")


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
