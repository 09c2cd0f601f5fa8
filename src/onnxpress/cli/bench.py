"""`onnxpress bench BUNDLE`: the figures of this machine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxpress.cli.data import add_evaluation_arguments, evaluation_options

HELP = "Measure a bundle's variants again on this machine, without PyTorch, and keep the figures in the user's cache."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder; it is not changed")
    parser.add_argument(
        "--variant", metavar="V", action="append", help="only this variant; may be repeated (default: all it can run)"
    )
    parser.add_argument("--measure", choices=("quick", "full"), default="quick", help="how long (default: quick)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads to use (default: the cores allowed)")
    add_evaluation_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Measure, keep, and show beside the bundle's own figures."""
    from onnxpress.cli.figures import bundle_threads, comparison, table
    from onnxpress.runtime.bench import advice, choose_variants, keep, measure_bundle, read_bench
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.evaluation import read_evaluation_for
    from onnxpress.runtime.machine import describe_machine, onnxruntime_version
    from onnxpress.runtime.origin import differences

    bundle = open_bundle(arguments.bundle)
    variants, reasons = choose_variants(bundle, arguments.variant or ())
    for name, reason in reasons.items():
        print(f"onnxpress: {name} is not measured: {reason}", file=sys.stderr)
    if (problem := read_bench(bundle).problem) is not None:
        print(f"onnxpress: {problem}", file=sys.stderr)
    paths, options = [Path(name) for name in arguments.eval or ()], evaluation_options(arguments)
    evaluation = read_evaluation_for(paths, bundle.manifest.task, bundle.manifest.labels, options) if paths else None
    with progress_bar(arguments.quiet) as progress:
        measured = measure_bundle(bundle, variants, arguments.measure, arguments.threads, evaluation, progress)
    kept = keep(bundle, measured)
    rows = comparison(
        bundle, [figures for figures in kept.variants if figures.name in {each.name for each in measured}]
    )
    told = advice(bundle, kept)
    machine, found = describe_machine(), differences(bundle.manifest)
    if arguments.json:
        document = {
            "bundle": str(bundle.folder),
            "manifest_sha256": bundle.manifest_sha256,
            "machine": dataclasses.asdict(machine),
            "onnxruntime": onnxruntime_version(),
            "differences": list(found),
            "not_measured": reasons,
            "variants": [dataclasses.asdict(figures) for figures in measured],
            "comparison": rows,
            "default_variant": bundle.manifest.default_variant,
            "advice": told,
        }
        print(json.dumps(document, ensure_ascii=False))
        return 0
    threads, of_bundle = measured[0].measurement["threads"], bundle_threads(bundle)
    there = "" if of_bundle in (None, threads) else f" (the bundle: {of_bundle})"
    print(f"{bundle.manifest.source.name} on {machine.cpu}, threads: {threads}{there}")
    print(
        f"  the bundle was measured elsewhere: {'; '.join(found)}" if found else "  the bundle was measured here, too"
    )
    print()
    print("\n".join(f"  {line}" for line in table(rows, bundle.manifest.task == "text-generation")))
    print()
    print(f"default: {bundle.manifest.default_variant}, as the bundle says" + (f"; {told}" if told else ""))
    return 0


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, float | None], None]]:
    """A bar when stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda detail, fraction: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda detail, fraction: bar.update(task, description=detail, completed=fraction)
