"""`onnxpress serve BUNDLE [BUNDLE ...]`: models over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from onnxpress.runtime.settings import PRESETS

if TYPE_CHECKING:
    from onnxpress.runtime.server.settings import ServerSettings

HELP = "Serve bundles over HTTP, with the routes of the OpenAI API."

_OF_SERVER = ("host", "port", "workers", "api_keys_file", "tls_certificate", "tls_key", "log")
_OF_BUNDLES = ("variant", "providers", "settings", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument(
        "bundles", nargs="*", metavar="BUNDLE", help="bundle folders; NAME=PATH to call one something else"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="settings as TOML (docs/serving.md); what is given here comes before them"
    )
    parser.add_argument(
        "--host", help="address to listen on (default: 127.0.0.1, so only this machine; 0.0.0.0 for all)"
    )
    parser.add_argument("--port", type=int, help="port; 0 for any that is free (default: 8000)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that serve, replaced when they die (default: 1)"
    )
    parser.add_argument("--variant", help="variant of all bundles (default: that of each)")
    parser.add_argument(
        "--providers",
        metavar="NAMES",
        help="execution providers in order of preference: cuda,cpu (default: what the variant was made for)",
    )
    parser.add_argument(
        "--settings", choices=tuple(PRESETS), help="how to use the machine (default: what `tune` kept, else server)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of each process (default: the cores, shared by workers)"
    )
    parser.add_argument("--api-keys-file", metavar="FILE", help="keys that requests must have one of, one a line")
    parser.add_argument("--tls-certificate", metavar="FILE", help="certificate chain as PEM, for HTTPS")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key as PEM")
    parser.add_argument("--log", choices=("debug", "info", "warning", "error"), help="what is logged (default: info)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    settings = settings_from(arguments)
    try:
        from onnxpress.runtime.server.running import run as serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("onnxpress"):
            raise
        raise ImportError(f"serving needs {error.name}: run pip install 'onnxpress[serve]'") from error
    return serve(settings)


def settings_from(arguments: argparse.Namespace) -> ServerSettings:
    """What the file says, and over it what the command line says.

    Raises:
        InvalidInputError: the file cannot be used, a value cannot be, or there is no bundle.
    """
    from onnxpress.runtime.errors import InvalidInputError
    from onnxpress.runtime.server.settings import ServerSettings, bundle_of

    given = _given(arguments, _OF_SERVER)
    bundles = tuple(bundle_of(bundle) for bundle in arguments.bundles)
    if arguments.config is not None:
        settings = dataclasses.replace(ServerSettings.read(arguments.config, bundles), **given)
    elif bundles:
        settings = ServerSettings(bundles, **given)
    else:
        raise InvalidInputError("there is no bundle to serve; name at least one, or a --config FILE that does")
    for_bundles = _given(arguments, _OF_BUNDLES)
    if "providers" in for_bundles:
        for_bundles["providers"] = tuple(name.strip() for name in arguments.providers.split(",") if name.strip())
    return dataclasses.replace(
        settings, bundles=tuple(dataclasses.replace(bundle, **for_bundles) for bundle in settings.bundles)
    )


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
