"""`onnxpress serve BUNDLE [BUNDLE ...]`: models over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

HELP = "Serve bundles over HTTP, with the routes of the OpenAI API."

_FIELDS = ("host", "port", "workers", "api_keys_file", "tls_certificate", "tls_key", "log")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "bundles", nargs="*", metavar="BUNDLE", help="bundle folders; NAME=PATH to call one something else"
    )
    parser.add_argument("--config", metavar="FILE", help="settings as TOML: limits, guards and all below")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, so only this machine)")
    parser.add_argument("--port", type=int, help="port; 0 for any that is free (default: 8000)")
    parser.add_argument("--workers", type=int, help="processes, replaced when they die (default: 1)")
    parser.add_argument("--api-keys-file", metavar="FILE", help="keys that requests must have one of, one a line")
    parser.add_argument("--tls-certificate", metavar="FILE", help="certificate chain as PEM, for HTTPS")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key as PEM")
    parser.add_argument("--log", choices=("debug", "info", "warning", "error"), help="what is logged (default: info)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    from onnxpress.runtime.server.settings import ServerSettings, bundle_of

    given: dict[str, Any] = {name: getattr(arguments, name) for name in _FIELDS if getattr(arguments, name) is not None}
    if arguments.config is None:
        settings = ServerSettings.of(arguments.bundles, **given)
    else:
        if arguments.bundles:
            given["bundles"] = tuple(bundle_of(bundle) for bundle in arguments.bundles)
        settings = dataclasses.replace(ServerSettings.read(arguments.config), **given)
    try:
        from onnxpress.runtime.server.running import run as serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("onnxpress"):
            raise
        raise ImportError(f"serving needs {error.name}: run pip install 'onnxpress[serve]'") from error
    return serve(settings)
