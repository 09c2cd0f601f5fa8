"""What is checked once, before a server starts: what cannot work is an error, what is unwise a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping

from onnxpress.runtime.server.hosts import is_loopback
from onnxpress.runtime.server.keys import ApiKeys, key_warnings
from onnxpress.runtime.server.settings import ServerSettings
from onnxpress.runtime.server.tls import tls_warnings

_FILES = 128
"""That a process has open beside its connections: bundles, libraries, logs."""


def check_start(settings: ServerSettings, environment: Mapping[str, str] = os.environ) -> list[str]:
    """
    Args:
        settings: of the server.
        environment: may have API keys.

    Returns:
        what its operator should know, in sentences.

    Raises:
        InvalidInputError: TLS or the API keys cannot work.
    """
    keys = ApiKeys.read(settings.api_keys_file, environment)
    warnings = key_warnings(settings.api_keys_file, environment)
    if not is_loopback(settings.host) and not keys:
        warnings.append(
            f"whoever reaches {settings.host} port {settings.port} may use this server: it has no API keys; "
            "give some with --api-keys-file"
        )
    if settings.tls_certificate is not None and settings.tls_key is not None:
        warnings += tls_warnings(settings.tls_certificate, settings.tls_key)
    elif keys and not is_loopback(settings.host):
        warnings.append(
            "API keys are sent in the open without TLS: give --tls-certificate and --tls-key, "
            "or put a reverse proxy before the server that ends TLS"
        )
    return warnings + _raise_open_files(settings.limits.connections)


def _raise_open_files(connections: int) -> list[str]:
    """Let a process have as many files open as its connections need. Processes that it starts may have as many."""
    if os.name != "posix":
        return []
    import resource  # not on Windows

    needed = connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return []
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most >= needed:
        return []
    sentence = (
        f"{connections:,} connections are allowed, and this process may have only {most:,} files open; "
        "raise that (ulimit -n), or lower limits.connections"
    )
    return [sentence]
