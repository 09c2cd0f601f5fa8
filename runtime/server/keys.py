"""API keys: who may use the server, told by `Authorization: Bearer KEY` as clients of the OpenAI API send it."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server.asgi import App, Receive, Scope, Send, header, refuse
from onnxpress.runtime.server.errors import RequestError

VARIABLE = "ONNXPRESS_API_KEYS"
"""Of the environment: keys with commas between them, instead of a file or beside it."""
_SHORT = 16
"""Characters below which a key can be guessed."""
_OPEN = ("/", "/docs", "/favicon.ico")
_OPEN_FOLDERS = ("/health/", "/page/")
"""The pages are files that say nothing of the models; what they show they ask for, with the key that is typed in."""


class ApiKeys:
    """Keys, of which only digests are kept."""

    def __init__(self, keys: Iterable[str]) -> None:
        """
        Args:
            keys: in plain text; none, and whoever reaches the server may use it.
        """
        self._digests = tuple(dict.fromkeys(_digest(key.encode()) for key in keys))

    @classmethod
    def read(cls, path: str | None, environment: Mapping[str, str] = os.environ) -> Self:
        """
        Args:
            path: of a file with a key on each line; empty lines and those that begin with # are passed over.
            environment: has `VARIABLE`, or not.

        Raises:
            InvalidInputError: the file cannot be read, or one of the two is there and has no key: a server that was
                meant to be closed is never open.
        """
        keys = [] if path is None else _keys_of_file(path)
        if VARIABLE in environment:
            own = [key.strip() for key in environment[VARIABLE].split(",") if key.strip()]
            if not own:
                raise InvalidInputError(f"{VARIABLE} is set and has no key; unset it to serve without keys")
            keys += own
        for number, key in enumerate(keys, 1):
            if not key.isprintable() or " " in key:
                raise InvalidInputError(f"the API key number {number} has a space, or a character that is not shown")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        """Whether it is one of them. Takes as long for each key, whichever it is and how much of it is right."""
        digest = _digest(key)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key."""
    return method in ("GET", "HEAD") and (path in _OPEN or path.startswith(_OPEN_FOLDERS))


class Keys:
    """Middleware, for a server that has keys."""

    def __init__(self, app: App, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not is_open(scope["method"], scope["path"]) and not self._has_key(scope):
            await refuse(_no_key(header(scope, b"authorization") is not None), scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        value = header(scope, b"authorization") or b""
        scheme, _, key = value.partition(b" ")
        return scheme.lower() == b"bearer" and self._keys.accept(key.strip())


def key_warnings(path: str | None, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What should be better about the keys, in sentences."""
    warnings = []
    keys = [key.strip() for key in environment.get(VARIABLE, "").split(",") if key.strip()]
    if path is not None:
        keys += _keys_of_file(path)
        mode = Path(path).stat().st_mode
        if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
            warnings.append(f"other users of this machine can read the API keys in {path}; run chmod 600 {path}")
    if short := sum(len(key) < _SHORT for key in keys):
        warnings.append(
            f"{short} of the API keys have fewer than {_SHORT} characters and can be guessed; make some with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return warnings


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _keys_of_file(path: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except OSError as error:
        raise InvalidInputError(f"the API keys in {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"the API keys in {path} cannot be read: it is not UTF-8 text") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InvalidInputError(f"{path} has no API key; give one on each line, or serve without --api-keys-file")
    return keys


def _no_key(tried: bool) -> RequestError:
    message = (
        "the API key is not one of this server's"
        if tried
        else "this server needs an API key, in the header `Authorization: Bearer KEY`"
    )
    return RequestError(401, message, kind="authentication_error", code="invalid_api_key")
