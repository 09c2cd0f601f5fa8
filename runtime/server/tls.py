"""TLS: the certificate and its key, checked before a client is the first to see that they do not work."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path
from typing import Any

from onnxpress.runtime.errors import InvalidInputError

_SOON = datetime.timedelta(days=14)
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which `ssl` has no name


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """What a server needs: TLS 1.2 or later, whatever the system's configuration would allow.

    Args:
        certificate: path of a PEM file with the certificate, and those between it and a known authority.
        key: path of a PEM file with its private key, without a password.

    Raises:
        InvalidInputError: a file is missing, is not what it should be, or the two do not belong together.
    """
    for what, path, mark in (
        ("certificate", certificate, b"-----BEGIN CERTIFICATE-----"),
        ("key", key, b"PRIVATE KEY-----"),
    ):
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InvalidInputError(f"the TLS {what} {path} cannot be read: {error.strerror}") from error
        if mark not in content:
            raise InvalidInputError(f"the TLS {what} {path} is none: a PEM file with {mark.decode()} is needed")
    if b"ENCRYPTED" in Path(key).read_bytes():
        raise InvalidInputError(f"the TLS key {key} has a password; store it without: openssl pkey -in {key} -out FILE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInputError(f"the TLS key {key} does not belong to the certificate {certificate}") from error
        raise InvalidInputError(
            f"the TLS certificate {certificate} and key {key} cannot be used: {_reason(error)}"
        ) from error
    return context


def tls_options(certificate: str | None, key: str | None) -> dict[str, Any]:
    """Arguments of `uvicorn.Config`.

    Args:
        certificate, key: as of `tls_context`; None for plain HTTP.
    """
    if certificate is None or key is None:
        return {}
    return {"ssl_context_factory": lambda config, default: tls_context(certificate, key)}


def tls_warnings(certificate: str, key: str, now: datetime.datetime | None = None) -> list[str]:
    """What clients will not like about the certificate, in sentences.

    Args:
        certificate, key: as of `tls_context`.
        now: None for the time that it is.

    Raises:
        InvalidInputError: as of `tls_context`.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        fields = _seen_by_client(tls_context(certificate, key), certificate)
    except ssl.SSLError as error:
        return [f"clients may refuse the TLS certificate {certificate}: {_reason(error)}"]
    first, last = (_time(str(fields[name])) for name in ("notBefore", "notAfter"))
    if last < now:
        return [f"the TLS certificate {certificate} expired on {last:%Y-%m-%d}; clients will refuse it"]
    if first > now:
        return [f"the TLS certificate {certificate} is valid only from {first:%Y-%m-%d}; until then clients refuse it"]
    if last < now + _SOON:
        return [f"the TLS certificate {certificate} expires on {last:%Y-%m-%d}"]
    return []


def _seen_by_client(server: ssl.SSLContext, certificate: str) -> dict[str, object]:
    """The fields of the certificate, as a client has them after a handshake in memory: `ssl` decodes no others."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(certificate)  # trusts it, also where it is not signed by itself
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):  # round trips; TLS 1.3 needs two
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return dict(ends[0].getpeercert() or {})


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), datetime.UTC)


def _reason(error: ssl.SSLError) -> str:
    told = getattr(error, "verify_message", None) or error.reason
    return told.lower().replace("_", " ") if told else "what they hold is damaged"
