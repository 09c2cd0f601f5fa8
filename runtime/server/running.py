"""Serves in this process, or hands over to a parent of several."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType

from onnxpress.runtime.server.application import create_app
from onnxpress.runtime.server.http_server import HttpServer
from onnxpress.runtime.server.listening import address_of, bind, start_listening
from onnxpress.runtime.server.logs import configure_logs
from onnxpress.runtime.server.settings import ServerSettings
from onnxpress.runtime.server.start_checks import check_start

_LOG = logging.getLogger("onnxpress.server")
STUCK_SECONDS = 15.0
"""After `drain_seconds`, for closing models and whatever else; then the process ends without."""


def run(settings: ServerSettings) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted; a second one ends at once. One line on stdout says
    when requests are answered, and where.

    Returns:
        the exit status.

    Raises:
        OnnxpressError: a bundle cannot be loaded, or the address, the port or the certificate cannot be used.
    """
    configure_logs(settings.log)
    for sentence in check_start(settings):
        _LOG.warning(sentence)
    sockets = bind(settings)
    try:
        if settings.workers == 1:
            return _serve(settings, sockets)
        from onnxpress.runtime.server.supervisor import supervise

        return supervise(settings, sockets)
    finally:
        for bound in sockets:
            bound.close()


def _serve(settings: ServerSettings, sockets: list[socket.socket]) -> int:
    # While models are loaded there is nothing to finish. Without a handler the first process of a container would not
    # hear the signal; that of SIGINT is Python's own, KeyboardInterrupt.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    app = create_app(settings)
    start_listening(sockets, settings)
    server = HttpServer(app, settings, sockets, lambda: announce(settings, address_of(sockets, settings)))

    def told(number: int, frame: FrameType | None) -> None:
        if server.is_ending:
            os._exit(128 + number)
        server.tell_to_end()
        end_for_certain(settings)

    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), told)
    server.serve_until_told()
    return 0


def announce(settings: ServerSettings, address: str) -> None:
    """The line that says that the server is ready."""
    names = ", ".join(bundle.called for bundle in settings.bundles)
    sys.stdout.write(f"onnxpress: serving {names} on {address}\n")
    sys.stdout.flush()


def end_for_certain(settings: ServerSettings) -> None:
    """Whatever happens: a process that was told to end does so."""

    def end() -> None:
        _LOG.error("the process did not end in time and is ended as it is")
        os._exit(1)

    timer = threading.Timer(settings.drain_seconds + STUCK_SECONDS, end)
    timer.daemon = True
    timer.start()
