"""One of several worker processes: `python -m onnxpress.runtime.server.worker FD`, started by worker_process.py.

It speaks with its parent in lines of JSON over the socket FD. The parent begins with the settings, the descriptors of
the sockets to listen on, the file and the place where connections are counted, and Python's search path. The worker
answers {"ready": true} once it serves, or {"failed": sentence}, and then {"beat": true} every second from its event
loop. {"end": "all"} tells it to end together with all others, {"end": "alone"} while they go on. When the parent has
gone, it ends.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.runtime.server.http_server import HttpServer

BEAT_SECONDS = 1.0
"""Between signs of life."""
FAILED = 2
"""The exit status of a worker that has said what failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end."""
    # Whoever signals the whole group, as a terminal and systemd do, means the parent: it tells its workers what to do,
    # which is one thing where all end and another where one does.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    (descriptor,) = arguments or sys.argv[1:]
    parent = socket.socket(fileno=int(descriptor))
    told = json.loads(_first_line(parent))
    sys.path[:] = told["path"]
    from onnxpress.runtime.errors import OnnxpressError

    try:
        _serve(parent, told)
    except OnnxpressError as error:
        _say(parent, {"failed": str(error)})
        return FAILED
    return 0


def _first_line(parent: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        received = parent.recv(1 << 16)
        if not received:
            raise SystemExit(1)
        line += received
    return line


def _serve(parent: socket.socket, told: dict[str, Any]) -> None:
    # Imported here, with the parent's search path.
    from onnxpress.runtime.decoding import decode
    from onnxpress.runtime.server.accepting import Counts
    from onnxpress.runtime.server.application import create_app
    from onnxpress.runtime.server.http_server import HttpServer
    from onnxpress.runtime.server.listening import start_listening
    from onnxpress.runtime.server.logs import configure_logs
    from onnxpress.runtime.server.running import end_for_certain
    from onnxpress.runtime.server.settings import ServerSettings
    from onnxpress.runtime.server.sharing import for_each_worker

    settings = decode(ServerSettings, told["settings"])
    configure_logs(settings.log)
    app = create_app(for_each_worker(settings))
    sockets = [socket.socket(fileno=number) for number in told["sockets"]]
    start_listening(sockets, settings)
    tasks: list[asyncio.Task[None]] = []

    def ready() -> None:
        _say(parent, {"ready": True})
        tasks.append(asyncio.get_running_loop().create_task(_talk(parent, server, lambda: end_for_certain(settings))))

    server = HttpServer(app, settings, sockets, ready, (Counts(Path(told["counts"])), told["place"]))
    server.serve_until_told()
    if server.has_lost_parent:  # which would have removed it
        shutil.rmtree(Path(told["counts"]).parent, ignore_errors=True)


async def _talk(parent: socket.socket, server: HttpServer, then: Callable[[], None]) -> None:
    """Signs of life, and what the parent says."""
    reader, writer = await asyncio.open_connection(sock=parent)

    async def beat() -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            writer.write(b'{"beat": true}\n')
            await writer.drain()

    beating = asyncio.create_task(beat())
    try:
        line = await reader.readline()
    except ConnectionError:
        line = b""
    then()
    if line:
        server.tell_to_end(others_go_on=json.loads(line)["end"] == "alone")
        await beating
    else:
        beating.cancel()
        server.has_lost_parent = True
        server.tell_to_end(now=True)


def _say(parent: socket.socket, message: dict[str, Any]) -> None:
    try:
        parent.sendall(json.dumps(message).encode() + b"\n")
    except OSError:  # it has gone, which _talk finds out
        return


if __name__ == "__main__":
    sys.exit(main())
