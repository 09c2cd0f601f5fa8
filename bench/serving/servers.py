"""Servers in processes of their own: started, waited for, watched through /proc, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import common

_READY_SECONDS = 120
_END_SECONDS = 60
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """One that is ready."""

    def __init__(self, name: str, pid: int, port: int) -> None:
        self.name = name
        self.pid = pid
        self.port = port


@contextlib.contextmanager
def serving(module: str, options: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Server]:
    """Run `python -m MODULE JSON` with a free port among the options, until the block ends.

    Raises:
        BadInputError: it ends by itself, or is not ready in two minutes; the text has its last line.
    """
    port = free_port()
    command = [sys.executable, "-m", module, json.dumps({**options, "port": port})]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=common.ROOT, env=dict(environment), stdout=said, stderr=said)
        try:
            if not _is_ready(process, port):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                raise common.BadInputError(f"{module} did not start: {(lines or ['no output'])[-1][:300]}")
            yield Server(module, process.pid, port)
        finally:
            _end(process)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all that it started, and those that they started."""
    found = [pid]
    for parent in found:
        for task in _children_files(parent):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Of the processor, that a process and its children have used."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children, in 1e6 bytes; what they share counts for each."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024 / 1e6
    return total


def _children_files(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").glob("*/children"))


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return True
        time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
