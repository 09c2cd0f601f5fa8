"""`onnxpress verify BUNDLE`."""

from __future__ import annotations

import argparse

HELP = "Run the gate on this machine: every variant against what PyTorch computed when the bundle was made."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--variant", help="only this variant")
    parser.add_argument("--providers", help="execution providers, such as cpu or cuda (default: the variant's target)")
    parser.add_argument("--threads", type=int, help="CPU threads to use (default: the cores allowed)")


def run(arguments: argparse.Namespace) -> int:
    """Verify and say so, one line a variant; status 1 if any fails."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.verifying import verify_variant

    bundle = open_bundle(arguments.bundle, verify=True)
    providers = arguments.providers.split(",") if arguments.providers else None
    names = [arguments.variant] if arguments.variant else [variant.name for variant in bundle.manifest.variants]
    failed = 0
    for name in names:
        verdict = verify_variant(bundle, bundle.manifest.variant(name), providers, arguments.threads)
        print(f"{name}: {verdict.sentence}")
        failed += not verdict.passed
    return 1 if failed else 0
