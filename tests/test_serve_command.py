"""`onnxpress serve`: what its options and its file say together, and what it says of what cannot be used."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxpress.cli import main, make_parser
from onnxpress.cli.serve import settings_from
from onnxpress.runtime.server.settings import Limits, ServedBundle, ServerSettings
from tests.served import embed, serving


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """What a server changes of its process."""
    handler, root, log = signal.getsignal(signal.SIGTERM), logging.getLogger(), logging.getLogger("onnxpress")
    handlers, levels = [*root.handlers], (root.level, log.level)
    yield
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    log.setLevel(levels[1])


def settings(*arguments: str) -> ServerSettings:
    return settings_from(make_parser().parse_args(["serve", *arguments]))


def test_options_are_of_all_bundles() -> None:
    found = settings(
        "a", "b=c", "--threads", "2", "--variant", "int8", "--providers", "cuda, cpu", "--settings", "small"
    )
    same: dict[str, Any] = {"variant": "int8", "providers": ("cuda", "cpu"), "settings": "small", "threads": 2}
    assert found.bundles == (ServedBundle("a", **same), ServedBundle("c", "b", **same))
    assert settings("a", "--port", "0", "--workers", "3") == ServerSettings.of(["a"], port=0, workers=3)


def test_a_bundle_is_called_as_its_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "release-7").mkdir()
    (tmp_path / "writer").symlink_to("release-7")
    monkeypatch.chdir(tmp_path / "release-7")
    paths = (".", "../writer/", str(tmp_path / "writer"), "../release-7/.")
    assert [ServedBundle(path).called for path in paths] == ["release-7", "writer", "writer", "release-7"]


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serving.toml"
    file.write_text('port = 9\nworkers = 2\n[limits]\nitems = 3\n[[bundles]]\npath = "a"\nname = "b"\nthreads = 4\n')
    found = settings("--config", str(file), "--port", "10", "--settings", "latency")
    assert (found.port, found.workers, found.limits) == (10, 2, Limits(items=3))
    assert found.bundles == (ServedBundle("a", "b", threads=4, settings="latency"),)
    assert settings("other", "--config", str(file)).bundles == (ServedBundle("other"),)
    file.write_text("workers = 2")
    assert settings("other", "--config", str(file)).workers == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no bundle to serve; name at least one"),
        (["a", "b=a", "a"], "two bundles are called 'a'"),
        (["=a"], "a bundle has an empty name or path"),
        (["a", "--port", "65536"], "port is 65536; give 0 to 65535"),
        (["a", "--workers", "0"], "workers is 0; give a whole number of at least 1"),
        (["a", "--threads", "-1"], "threads is -1; give a whole number of at least 1"),
        (["a", "--threads", "99999"], "threads is 99999, and this process may use"),
        (["a", "--tls-key", "key"], "TLS needs both a certificate and a key"),
        (["a", "--config", "nowhere.toml"], "the settings nowhere.toml cannot be read: No such file or directory"),
        (["nowhere", "--port", "0"], "nowhere: there is no bundle folder at nowhere"),
        (["nowhere", "--host", "192.0.2.1"], "192.0.2.1 is no address of this machine"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"onnxpress: {message}")
    assert all(json.loads(warning)["level"] == "warning" for warning in warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 8000", "prot: unknown key"),
        ("[limits]\nitems = 0", "items is 0"),
        ("[[bundles]]\nname = 'a'", "bundles[0].path: missing"),
        ("[[bundles]]\npath = 'a'\nsettings = 'fast'", "settings is 'fast'"),
        ("drain_seconds = 0", "drain_seconds is 0"),
        ("lame_duck_seconds = 30", "lame_duck_seconds is 30.0; give 0 or more, and less than drain_seconds"),
        ("log = 'loud'", "log is 'loud'; give one of: debug"),
        ("port = ", "Invalid value"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serving.toml"
    file.write_text(text if "bundles" in text else f"{text}\n[[bundles]]\npath = 'a'" if "[" not in text else text)
    bundles = [] if "bundles" in file.read_text() else ["a"]
    assert main(["serve", *bundles, "--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        # The bundle is not looked at.
        assert main(["serve", "nowhere", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is taken by another process" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("onnxpress.runtime.server.")]:
        if not name.endswith((".settings",)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "bundle"]) == 2
    assert capsys.readouterr().err == "onnxpress: serving needs fastapi: run pip install 'onnxpress[serve]'\n"


def test_it_serves_under_the_names_given_and_ends_in_peace(tiny_bundle: Path) -> None:
    with serving(f"one={tiny_bundle}", f"two={tiny_bundle}", "--threads", "1", "--variant", "int8") as served:
        assert re.search(r"serving one, two on http://127", "".join(served.lines))
        status, body = embed(served.connect())
        assert (status, body["error"]["param"]) == (400, "model")
        connection = served.connect()
        connection.request("GET", "/v1/models/two")
        assert b'"variant":"int8"' in connection.getresponse().read()
        served.signal(signal.SIGINT)
        assert served.wait() == 0
