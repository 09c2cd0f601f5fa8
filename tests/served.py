"""A server in a process of its own, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

WAIT_SECONDS = 120.0
"""That anything may take on a machine with much else to do."""


class Served:
    """What `serving` started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.port = 0
        self._connections: list[HTTPConnection] = []
        self.lines: list[str] = []
        """Of stdout and stderr."""
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._news.put(line)
        self._news.put(None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line with it."""
        end = time.monotonic() + WAIT_SECONDS
        while line := self._news.get(timeout=max(0.1, end - time.monotonic())):
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}:\n{''.join(self.lines)}")

    def wait(self) -> int:
        """Its exit status."""
        status = self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        return status

    def close(self) -> None:
        """Give back what is left of it."""
        for connection in self._connections:
            connection.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def connect(self) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        self._connections.append(connection)
        return connection

    def workers(self) -> list[int]:
        """The processes it has started."""
        pid = self.process.pid
        try:
            return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        except FileNotFoundError:
            return []


@contextlib.contextmanager
def serving(
    *arguments: str | Path, ready: bool = True, python: Path = Path(sys.executable), **environment: str
) -> Iterator[Served]:
    """`onnxpress serve` with the arguments, on any port; killed at the end if it runs."""
    command = [str(python), "-m", "onnxpress", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    served = Served(process)
    try:
        if ready:
            served.port = int(served.wait_for(r"onnxpress: serving .* on http://127\.0\.0\.1:(\d+)$")[1])
        yield served
    finally:
        workers = served.workers()
        process.kill()
        served.wait()
        for worker in workers:  # they end by themselves; not in a test that fails
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        served.close()


def embed(connection: HTTPConnection, texts: Sequence[str] | str = "a text") -> tuple[int, Any]:
    """Status and body of `/v1/embeddings`."""
    connection.request("POST", "/v1/embeddings", json.dumps({"input": texts}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())
