"""What a server is told: plain data, read from a TOML file and the command line, and what it may be."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from onnxpress.runtime.decoding import decode
from onnxpress.runtime.errors import InvalidInputError, require_whole
from onnxpress.runtime.guards.settings import GuardSettings
from onnxpress.runtime.settings import require_threads, settings_of

MEBIBYTE = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for and a worker process may hold. Whatever is beyond them is refused in a sentence, at
    once."""

    body_bytes: int = 4 * MEBIBYTE
    """Of a request's body (413)."""
    bodies_bytes: int = 64 * MEBIBYTE
    """Of all bodies together, from their first byte until their request has ended (503)."""
    items: int = 512
    """Texts, prompts or documents of a request (400)."""
    tokens: int = 131_072
    """Of all texts of a request together, after they were cut to what the model reads; of text generation, of prompts
    and answers (400)."""
    waiting: int = 512
    """Sequences that wait, for each model (429)."""
    streams: int = 64
    """Answers that are streamed at once (429)."""
    connections: int = 2048
    """At once (503)."""
    seconds: float = 60.0
    """That a request may take (504)."""
    stalled_seconds: float = 30.0
    """That a client may leave what was sent to it unread; then it is disconnected."""
    header_seconds: float = 10.0
    """That the headers of a request may take from their first byte, of the first one from the connection (408)."""
    body_seconds: float = 30.0
    """That a request's body may take (408)."""
    idle_seconds: float = 75.0
    """That a connection stays open without a request. Longer than clients and proxies keep theirs (mostly up to 60), so
    that it is they who close it, and no request meets a connection that is just being closed."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be.
        """
        for name in ("body_bytes", "bodies_bytes", "items", "tokens", "waiting", "streams", "connections"):
            require_whole(name, getattr(self, name))
        if self.bodies_bytes < self.body_bytes:
            raise InvalidInputError(
                f"bodies_bytes is {self.bodies_bytes}, and one body may have {self.body_bytes}; give at least that"
            )
        for name in ("seconds", "stalled_seconds", "header_seconds", "body_seconds", "idle_seconds"):
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
    """A preset; None for what `onnxpress tune` kept, else `server`."""
    threads: int | None = None
    """CPU threads of each worker process; None for the cores, shared among the workers."""
    share_weights: bool | None = None
    """Map the weights of a model on the CPU from one file that all workers share. None: where there are several workers
    and the variant is large enough to gain by it."""

    def __post_init__(self) -> None:
        """
        Raises:
            InvalidInputError: a value cannot be.
        """
        require_threads(self.threads)
        if self.settings is not None:
            settings_of(self.settings)
        if not self.path or self.name == "":
            raise InvalidInputError("a bundle has an empty name or path; give PATH, or NAME=PATH")

    @property
    def called(self) -> str:
        """What requests call it."""
        # A link keeps its own name, whatever it points to today; "." and ".." have none.
        path = Path(self.path)
        return self.name or (path.resolve().name if path.name in ("", "..") else path.name)


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
    """Host names that requests may use, `*.example.org` for all below that; none for any, on a loopback address for
    that address and `localhost`."""
    origins: tuple[str, ...] = ()
    """Web sites, such as `https://example.org`, whose pages may use the server from a browser; `*` for all. Its own
    page always may."""
    lame_duck_seconds: float = 1.0
    """That a server which is told to end still takes connections, while `/health/ready` says 503 and each answer closes
    its connection: time for load balancers to notice."""
    drain_seconds: float = 30.0
    """From being told to end, until what has not been answered by then is given up."""
    worker_timeout_seconds: float = 60.0
    """Without a sign of life, after which one of several workers is replaced."""
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
        names = [bundle.called for bundle in self.bundles]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInputError(f"two bundles are called {name!r}; give one another name: NAME=PATH")
        if self.log not in LOG_LEVELS:
            raise InvalidInputError(f"log is {self.log!r}; give one of: {', '.join(LOG_LEVELS)}")
        self._check_processes()
        self._check_addresses()

    def _check_processes(self) -> None:
        require_whole("workers", self.workers)
        for name in ("drain_seconds", "worker_timeout_seconds"):
            if not 1 <= getattr(self, name) <= 86400:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; give a number of seconds from 1 to 86400")
        if not 0 <= self.lame_duck_seconds < self.drain_seconds:
            raise InvalidInputError(
                f"lame_duck_seconds is {self.lame_duck_seconds}; give 0 or more, and less than drain_seconds "
                f"({self.drain_seconds})"
            )

    def _check_addresses(self) -> None:
        if isinstance(self.port, bool) or not 0 <= self.port <= 65535:
            raise InvalidInputError(f"port is {self.port}; give 0 to 65535")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidInputError("TLS needs both a certificate and a key")
        self._check_names()

    def _check_names(self) -> None:
        for host in self.hosts:
            if not re.fullmatch(r"[^/:]+|\[[0-9a-fA-F:.]+\]", host):
                raise InvalidInputError(f"hosts has {host!r}; give a name as example.org, without scheme and port")
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/]+", origin):
                raise InvalidInputError(f"origins has {origin!r}; give scheme and name as https://example.org, or '*'")

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
    def read(cls, path: str | Path, bundles: Sequence[ServedBundle] = ()) -> Self:
        """
        Args:
            path: of a TOML file.
            bundles: instead of those of the file, which then need not name any.

        Raises:
            InvalidInputError: the file cannot be read, or says something that cannot be.
        """
        try:
            with Path(path).open("rb") as file:
                document = tomllib.load(file)
            if bundles:
                document["bundles"] = [_plain(bundle) for bundle in bundles]
            return decode(cls, document)
        except OSError as error:
            raise InvalidInputError(f"the settings {path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # also what is not TOML
            raise InvalidInputError(f"the settings {path}: {error}") from error


def _plain(bundle: ServedBundle) -> dict[str, Any]:
    """As the file would have it."""
    return {**dataclasses.asdict(bundle), "providers": list(bundle.providers)}


def bundle_of(text: str) -> ServedBundle:
    """`PATH` or `NAME=PATH`."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        return ServedBundle(text)
    return ServedBundle(path, name)
