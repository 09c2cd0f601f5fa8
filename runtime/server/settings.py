"""What a server is told: plain data, read from a TOML file and the command line, and what it may be."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError, require_whole
from onnxpress.runtime.guards.settings import GuardSettings

MEBIBYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for and a worker process may hold. Whatever is beyond them is refused in a sentence, at
    once."""

    body_bytes: int = 4 * MEBIBYTE
    """Of a request's body (413)."""
    items: int = 512
    """Texts, prompts or documents of a request (400)."""
    tokens: int = 131_072
    """Of all texts of a request together, after they were cut to what the model reads; of text generation, of prompts
    and answers (400)."""
    waiting: int = 1024
    """Sequences that wait, for each model (429)."""
    streams: int = 64
    """Answers that are streamed at once (429)."""
    connections: int = 2048
    """At once (503)."""
    seconds: float = 60.0
    """That a request may take (504)."""
    stalled_seconds: float = 30.0
    """That a client may leave what was sent to it unread; then it is disconnected."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be.
        """
        for name in ("body_bytes", "items", "tokens", "waiting", "streams", "connections"):
            require_whole(name, getattr(self, name))
        for name in ("seconds", "stalled_seconds"):
            if not 0 < getattr(self, name) <= 86400:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; give a number of seconds up to 86400")


@dataclasses.dataclass(frozen=True)
class ServedBundle:
    """One of the bundles, and how it is loaded."""

    path: str
    name: str | None = None
    """What requests call it; None for the name of its folder."""
    variant: str | None = None
    """None for the bundle's default."""
    providers: tuple[str, ...] = ()
    """In order of preference; none for what `load` chooses."""
    settings: str | None = None
    """A preset; None for what `onnxpress tune` kept, else `balanced`."""
    threads: int | None = None
    """CPU threads of each worker process; None for the cores, shared among the workers."""

    @property
    def called(self) -> str:
        """What requests call it."""
        return self.name or Path(self.path).resolve().name


ServedGuard = GuardSettings
"""A guard of a server is one as any other; `models` are names of its bundles."""


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """All of it. `[[bundles]]`, `[[guards]]` and `[limits]` of a TOML file, and keys of its top level."""

    bundles: tuple[ServedBundle, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    """0 for any that is free."""
    workers: int = 1
    """Processes that serve."""
    limits: Limits = Limits()
    guards: tuple[ServedGuard, ...] = ()
    api_keys_file: str | None = None
    """One key a line. None: whoever reaches the server may use it."""
    tls_certificate: str | None = None
    tls_key: str | None = None
    hosts: tuple[str, ...] = ()
    """Host names that requests may use; none for any, on a loopback address for that address and `localhost`."""
    drain_seconds: float = 30.0
    """That a server which is told to end waits for what it has accepted."""
    log: str = "info"
    """debug, info, warning or error."""
    traces: str | None = None
    """Where OpenTelemetry traces go: the address of an OTLP collector. Needs `onnxpress[traces]`."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be, or contradicts another.
        """
        if not self.bundles:
            raise InvalidInputError("there is no bundle to serve; name at least one")
        require_whole("workers", self.workers)
        if isinstance(self.port, bool) or not 0 <= self.port <= 65535:
            raise InvalidInputError(f"port is {self.port}; give 0 to 65535")
        names = [bundle.called for bundle in self.bundles]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"two bundles are called {name!r}; give one another name: NAME=PATH")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidInputError("TLS needs both a certificate and a key")

    @classmethod
    def of(cls, paths: Sequence[str | Path], **others: Any) -> Self:
        """
        Args:
            paths: of bundles, or `NAME=PATH`.
            others: the remaining fields.

        Raises:
            InvalidInputError: a value cannot be.
        """
        return cls(tuple(bundle_of(str(path)) for path in paths), **others)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """
        Raises:
            InvalidInputError: the file cannot be read, or says something that cannot be.
        """
        try:
            with Path(path).open("rb") as file:
                return decode(cls, tomllib.load(file))
        except OSError as error:
            raise InvalidInputError(f"the settings {path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # also what is not TOML
            raise InvalidInputError(f"the settings {path}: {error}") from error


def bundle_of(text: str) -> ServedBundle:
    """`PATH` or `NAME=PATH`."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        return ServedBundle(text)
    return ServedBundle(path, name)
