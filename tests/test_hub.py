"""Models named by their hub id, from a local stand-in of the hub's HTTP interface."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Serves one folder as `acme/tiny` (public) and `acme/private` (with the token), at `main` and at `v1`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        """The test's output stays calm."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        if repository not in ("acme/tiny", "acme/private"):
            return self.send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)
        if repository == "acme/private" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"X-Error-Code": "RepoNotFound"}, b"{}", with_body)
        rest = parts[4:] if api else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", "v1", COMMIT):
            return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", with_body)
        files = sorted(path for path in self.server.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.server.folder).as_posix(): path for path in files}
        if api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": self.etag(path)}
                for name, path in names.items()
            ]
            return self.send(200, {}, json.dumps(entries).encode(), with_body)
        if api:
            siblings = [{"rfilename": name} for name in names]
            found = {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self.send(200, {}, json.dumps(found).encode(), with_body)
        path = names.get("/".join(rest[2:]))
        if path is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"", with_body)
        if with_body:
            self.server.downloads.append(path.name)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.etag(path)}"', "Accept-Ranges": "bytes"}
        return self.send(200, headers, path.read_bytes(), with_body)

    @staticmethod
    def etag(path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def send(self, status: int, headers: dict[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub(tiny_model: Path) -> Iterator[Hub]:
    server = Hub(tiny_model)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def export(
    hub: Hub, name: str, home: Path, output: Path, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads where the hub is when it is imported."""
    command = [sys.executable, "-m", "onnxpress", "export", name, "--output", str(output), "--measure", "none"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    return subprocess.run(
        [*command, "--variants", "fp32", "--quiet", *options],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_model_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    hub.downloads.clear()
    first = export(hub, "acme/tiny", tmp_path / "hf", tmp_path / "a", "--revision", "v1")
    assert (first.returncode, first.stderr) == (0, "")
    assert "model.safetensors" in hub.downloads
    manifest = json.loads((tmp_path / "a" / "onnxpress.json").read_text())
    assert manifest["source"]["location"] == "acme/tiny"
    assert manifest["source"]["revision"] == COMMIT
    hub.downloads.clear()
    assert export(hub, "acme/tiny", tmp_path / "hf", tmp_path / "b").returncode == 0
    assert hub.downloads == []


def test_a_model_that_was_fetched_works_offline(hub: Hub, tmp_path: Path) -> None:
    assert export(hub, "acme/tiny", tmp_path / "hf", tmp_path / "a").returncode == 0
    again = export(hub, "acme/tiny", tmp_path / "hf", tmp_path / "b", HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stderr) == (0, "")


def test_a_private_model_needs_the_token(hub: Hub, tmp_path: Path) -> None:
    refused = export(hub, "acme/private", tmp_path / "hf", tmp_path / "a")
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stderr
    assert export(hub, "acme/private", tmp_path / "hf", tmp_path / "a", HF_TOKEN=TOKEN).returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "variables", "part"),
    [
        ("acme/nothing", (), {}, "'acme/nothing'"),
        ("acme/tiny", ("--revision", "v9"), {}, "no revision 'v9'"),
        ("acme/tiny", (), {"HF_HUB_OFFLINE": "1"}, "cannot be reached"),
        ("acme/tiny", (), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ("not a name", (), {}, "neither a folder, a recipe nor a hub id"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: Hub, tmp_path: Path, name: str, options: tuple[str, ...], variables: dict[str, str], part: str
) -> None:
    found = export(hub, name, tmp_path / "hf", tmp_path / "a", *options, **variables)
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert part in found.stderr
    assert not (tmp_path / "a").exists()
