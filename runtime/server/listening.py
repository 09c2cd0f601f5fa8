"""The sockets a server listens on: bound before models are loaded, listening once they are warm, emptied at the end.

Until a server is warm its port refuses connections, as that of one which is not there: no probe and no balancer takes
it for one that serves. Whatever keeps it from having the port it says at once.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Sequence

from onnxpress.runtime.errors import InvalidInputError
from onnxpress.runtime.server.settings import ServerSettings

BACKLOG = 2048
"""Connections that wait to be accepted; the system may have a lower limit (net.core.somaxconn)."""

_SO_ATTACH_FILTER = 26
# Classic BPF over the TCP header: the byte with the flags; where SYN is set the packet is dropped, else it passes.
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0x40000))
)


def bind(settings: ServerSettings) -> list[socket.socket]:
    """Sockets that have the address and port, one for each address of the host; they do not listen yet.

    Raises:
        InvalidInputError: the host is unknown or not of this machine, or the port is taken or needs privileges.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidInputError(f"the host {settings.host!r} is not known on this machine: {error}") from error
    sockets: list[socket.socket] = []
    port = settings.port
    failures: list[OSError] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bind(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            failures.append(error)
            continue
        port = sockets[0].getsockname()[1]  # the same for all, where any would do
    # A name may stand for addresses that this machine lacks, as `localhost` does for ::1 where there is no IPv6.
    serious = [error for error in failures if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)]
    if serious or not sockets:
        for bound in sockets:
            bound.close()
        raise InvalidInputError(_why((serious or failures)[0], settings)) from (serious or failures)[0]
    return sockets


def _bind(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    bound.setblocking(False)
    return bound


def start_listening(sockets: Sequence[socket.socket], settings: ServerSettings) -> None:
    """From now on connections are made.

    Raises:
        InvalidInputError: meanwhile another process listens on the port.
    """
    for bound in sockets:
        try:
            bound.listen(BACKLOG)
        except OSError as error:
            raise InvalidInputError(_why(error, settings)) from error


def _why(error: OSError, settings: ServerSettings) -> str:
    place = f"port {settings.port} of {settings.host}"
    match error.errno:
        case errno.EADDRINUSE:
            return f"{place} is taken by another process; end that one, or give another port (0 for any that is free)"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return (
                f"{settings.host} is no address of this machine; give one that it has, 127.0.0.1 for this machine "
                "alone, or 0.0.0.0 for all that it has"
            )
        case errno.EACCES | errno.EPERM:
            return f"{place} needs privileges this process lacks; give a port from 1024 on"
        case _:
            return f"{place} cannot be used: {error.strerror or error}"


def address_of(sockets: Sequence[socket.socket], settings: ServerSettings) -> str:
    """Where clients find the server, such as `http://127.0.0.1:8000`."""
    scheme = "http" if settings.tls_certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{sockets[0].getsockname()[1]}"


def refuse_new(sockets: Sequence[socket.socket]) -> None:
    """Begin no further connections, so that those which wait to be accepted become no more. On Linux only: packets that
    would begin one are dropped, and their senders try again until the port is closed, or another server has it.

    A socket that is closed while connections arrive resets those which nobody has accepted yet, and somebody may have
    sent a request on one.
    """
    if not sys.platform.startswith("linux"):
        return
    program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    filtering = struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    for listening in sockets:
        try:
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtering)
        except OSError:  # a sandbox without filters: then a few connections may be reset, as anywhere else
            continue


def accept_waiting(listening: socket.socket) -> list[socket.socket]:
    """All connections that wait to be accepted."""
    accepted: list[socket.socket] = []
    while True:
        try:
            connection, _ = listening.accept()
        except ConnectionAbortedError:
            continue
        except OSError:  # none is left; or no file descriptor
            return accepted
        connection.setblocking(False)
        accepted.append(connection)
