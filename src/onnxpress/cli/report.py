"""`onnxpress report BUNDLE`."""

from __future__ import annotations

import argparse

HELP = "Say where a bundle's report is, or open it in the browser."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle folder")
    parser.add_argument("--open", action="store_true", help="open the page in the default browser")


def run(arguments: argparse.Namespace) -> int:
    """Print the path of report.html, and open it if asked."""
    from onnxpress.cli.figures import tell_origin
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.errors import InvalidBundleError

    bundle = open_bundle(arguments.bundle)
    page = bundle.path_of("report.html").resolve()
    tell_origin(bundle)
    print(page)
    if arguments.open:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            raise InvalidBundleError(f"no browser could be started; open {page} yourself")
    return 0
