"""Certificates and keys of a server, made with the command `openssl`."""

from __future__ import annotations

import datetime
import shutil
import socket
import ssl
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server.settings import Limits
from onnxpress.runtime.server.tls import tls_context, tls_options, tls_warnings
from tests.live_server import read_answer, request, serve
from tests.waiting import until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long` and `short` are pairs of certificates and keys, of 400 days and of one."""
    folder = tmp_path_factory.mktemp("tls")
    for name, days in (("long", 400), ("short", 1)):
        openssl(
            *["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days)],
            *["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", "/CN=localhost"],
            *["-addext", "subjectAltName=DNS:localhost"],
        )
    openssl("pkey", "-in", folder / "long.key", "-aes256", "-passout", "pass:word", "-out", folder / "locked.key")
    (folder / "text").write_text("no certificate")
    (folder / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return folder


def openssl(*arguments: Any) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("certificate", "key", "told"),
    [
        ("gone.pem", "long.key", "certificate .*gone.pem cannot be read: No such file"),
        ("long.pem", "gone.key", "key .*gone.key cannot be read: No such file"),
        ("text", "long.key", "certificate .*text is none: a PEM file with -----BEGIN CERTIFICATE"),
        ("long.key", "long.key", "certificate .* is none"),
        ("long.pem", "long.pem", "key .* is none: a PEM file with PRIVATE KEY"),
        ("long.pem", "short.key", "key .*short.key does not belong to the certificate .*long.pem"),
        ("long.pem", "locked.key", "has a password; store it without"),
        ("damaged.pem", "long.key", "cannot be used: what they hold is damaged"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(folder: Path, certificate: str, key: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        tls_context(str(folder / certificate), str(folder / key))


def test_the_time_of_a_certificate_is_looked_at(folder: Path) -> None:
    long, short = ((str(folder / f"{name}.pem"), str(folder / f"{name}.key")) for name in ("long", "short"))
    assert tls_warnings(*long) == []
    assert "short.pem expires on" in tls_warnings(*short)[0]
    now = datetime.datetime.now(datetime.UTC)
    assert "expired on" in tls_warnings(*long, now + datetime.timedelta(days=401))[0]
    assert "valid only from" in tls_warnings(*long, now - datetime.timedelta(days=1))[0]


def test_a_server_speaks_tls_1_2_and_later(folder: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": scope["scheme"][:2].encode()})

    certificate, key = str(folder / "long.pem"), str(folder / "long.key")
    trusting = ssl.create_default_context(cafile=certificate)
    old = ssl.create_default_context(cafile=certificate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with serve(app, **tls_options(certificate, key)) as live:
        with live.connect() as plain, trusting.wrap_socket(plain, server_hostname="localhost") as client:
            assert client.version() in ("TLSv1.2", "TLSv1.3")
            client.sendall(request())
            assert read_answer(client)[0] == 200
        with live.connect() as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(plain, server_hostname="localhost")


def test_a_client_that_does_not_read_is_disconnected_over_tls_too(folder: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50000000")]})
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    certificate, key = str(folder / "long.pem"), str(folder / "long.key")
    trusting = ssl.create_default_context(cafile=certificate)
    options = tls_options(certificate, key)
    with serve(app, Limits(stalled_seconds=0.5), **options) as live, live.connect(receive_buffer=4096) as plain:
        client: socket.socket = trusting.wrap_socket(plain, server_hostname="localhost")
        with client:
            client.sendall(request())
            until(lambda: live.connections == 1)
            until(lambda: live.connections == 0)
