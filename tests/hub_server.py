"""A stand-in for the Hugging Face Hub on this machine: the part of its HTTP interface that downloads use.

It serves files from memory, answers as the hub does (error codes in headers, redirects left out), and keeps a record of
what was asked. Faults are set by tests: answers that refuse, and downloads that break off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_secret"
OTHER_TOKEN = "hf_other"
"""A good token of an account that may read no private and no gated model."""


def commit(name: str) -> str:
    """A full commit hash made from a name."""
    return hashlib.sha1(name.encode()).hexdigest()


@dataclasses.dataclass
class Repository:
    """A model repository: its files at each commit, and which commits its branches and tags stand for."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    private: bool = False
    gated: bool = False

    @staticmethod
    def of(files: dict[str, bytes], private: bool = False, gated: bool = False) -> Repository:
        """One commit, on `main` and tagged `v1`."""
        first = commit("first")
        return Repository({first: files}, {"main": first, "v1": first}, private, gated)


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked: the method, the file (None for questions to the API) and where its bytes should begin."""

    method: str
    file: str | None
    start: int


@dataclasses.dataclass(frozen=True)
class Break:
    """How one download of a file breaks off: after so many bytes, by hanging up or by resetting the connection."""

    after: int
    reset: bool = False


class Hub(ThreadingHTTPServer):
    """The server. `repositories` by id; `requests` in order of arrival."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        """A status and headers with which everything is answered."""
        self.breaks: dict[str, list[Break]] = {}
        """For a file: how each of its next downloads breaks off."""
        self.to_reset: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error; anything else is one of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """End a connection, or reset it."""
        if request not in self.to_reset:
            return super().shutdown_request(request)
        self.to_reset.remove(request)
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() then resets
        return request.close()

    def reset(self) -> None:
        """No repositories, no faults, no record."""
        self.repositories.clear()
        self.requests.clear()
        self.breaks.clear()
        self.refusal = None

    def downloads(self) -> list[str]:
        """The files whose bytes were asked for since the last call, each name once."""
        names = sorted({request.file for request in self.requests if request.method == "GET" and request.file})
        self.requests.clear()
        return names


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """The server, in a thread."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by their path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """The test's output stays calm."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.split("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.requests.append(Request(self.command, file[3] if file else None, start))
        found = api or file
        if self.server.refusal is not None:
            return self.send(*self.server.refusal)
        if found is None:
            return self.send(404, {})
        repository = self.server.repositories.get(found[1])
        refused = self.refused(repository, file is not None)
        if refused is not None or repository is None:
            return self.send(*(refused or (404, {})))
        revision = (api[3] if api else found[2]) or "main"
        hash_ = repository.branches.get(revision, revision)
        files = repository.commits.get(hash_)
        if files is None:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        if file is not None:
            return self.send_file(hash_, file[3], files, start)
        if api is not None and api[2] == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])} for name in files
            ]
            return self.send(200, {}, json.dumps(tree).encode())
        siblings = [{"rfilename": name} for name in files]
        model = {"id": found[1], "sha": hash_, "siblings": siblings, "private": repository.private, "tags": []}
        return self.send(200, {}, json.dumps(model).encode())

    def refused(self, repository: Repository | None, is_file: bool) -> tuple[int, dict[str, str]] | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", TOKEN, OTHER_TOKEN):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if repository is None or (repository.private and token != TOKEN):  # the hub does not say which of the two
            return 404 if token else 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        if repository.gated and is_file and token != TOKEN:  # what it is may be known, its files may not
            return 403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
        return None

    def send_file(self, hash_: str, name: str, files: dict[str, bytes], start: int) -> None:
        content = files.get(name)
        if content is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": hash_, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        breaks = self.server.breaks.get(name)
        broken = breaks.pop(0) if breaks and self.command == "GET" else None
        return self.send(206 if start else 200, headers, content[start:], broken)

    def send(self, status: int, headers: dict[str, str], body: bytes = b"{}", broken: Break | None = None) -> None:
        """Answer; with `broken`, promise the whole body and keep only a part of the promise."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: broken.after] if broken else body)
        if broken is not None:
            self.close_connection = True
            if broken.reset:
                self.server.to_reset.add(self.connection)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
