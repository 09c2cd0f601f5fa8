"""A cheap client of many connections: `python -m bench.serving.load '{...}'` sends requests and prints JSON.

It shares the processor with the server it measures, so requests are bytes made beforehand, and of an answer only the
status, `Retry-After` and the length are read. Options, those with a default in brackets:

- `port`, `path`, `bodies_file`: a JSON list of the bodies, sent in this order, over and over
- `seconds`: that are measured, after `warm_seconds` [0] of the same
- `clients`: closed loop of so many connections, each of which asks again when it has its answer; measuring begins when
  there are twice as many answers, too; or
- `rate`: open loop of so many requests a second, whatever the server does, at random times (a Poisson process); a
  connection is opened where all are taken, up to `most_connections` [4000]
- `wait_seconds` [90]: for answers that are missing at the end
- `pid` [none]: of the server, whose processor time and memory are watched

Latencies are counted from the moment at which a request was due. An outcome is a status, `lost` (the connection ended
without an answer) or `hung` (no answer in `wait_seconds`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import random
import re
import sys
import time
from pathlib import Path
from typing import Any, cast

import uvloop

from bench.serving import servers

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *\d", re.IGNORECASE)
_KEPT_SECONDS = 3.0
"""A connection that was idle for longer is not used again: the server may be about to close it."""
_WATCH_SECONDS = 0.25
_LOOK_SECONDS = 0.05
_END = b"\r\n\r\n"


class Tally:
    """Outcomes of the requests that were due while it was measured."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.sent = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.without_retry = 0
        self.done_inside = 0
        self.bytes = 0

    def add(self, due: float, outcome: str, retry: bool = False, size: int = 0) -> None:
        """A request has come to its end."""
        now = time.monotonic()
        if outcome == "200" and self.begin <= now < self.end:
            self.done_inside += 1
        if not self.begin <= due < self.end:
            return
        self.outcomes[outcome] += 1
        self.seconds[outcome].append(now - due)
        self.bytes += size
        self.without_retry += outcome in ("429", "503") and not retry


class Connection(asyncio.Protocol):
    """One connection, which has at most one request under way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.due = -1.0  # of the request under way; below 0 there is none
        self.since = 0.0  # when it became idle
        self._head = b""
        self._left = 0
        self._status = ""
        self._retry = False
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As of asyncio."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request."""
        assert self.transport is not None
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """As of asyncio."""
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            end = self._head.find(_END)
            if end < 0:
                return
            length = _LENGTH.search(self._head, 0, end)
            self._status = self._head[9:12].decode()
            self._retry = _RETRY.search(self._head, 0, end) is not None
            self._size = int(length[1]) if length else 0
            self._left = self._size - (len(self._head) - end - len(_END))
            self._head = b""
        if self._left <= 0:
            self._left = 0
            due, self.due = self.due, -1.0
            self.load.answered(self, due, self._status, self._retry, self._size)

    def connection_lost(self, error: Exception | None) -> None:
        """As of asyncio."""
        self.transport = None
        self.load.ended(self, self.due)


class Load:
    """The connections and what they are sent."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.requests = requests_of(options)
        self.next = 0
        self.connections: set[Connection] = set()
        self.most_open = 0
        self.under_way = 0
        self.idle: list[Connection] = []
        self.late = 0.0
        self.closed = "clients" in options
        self.warm_until = time.monotonic() + options.get("warm_seconds", 0)
        begin = math.inf if self.closed else self.warm_until  # of a closed loop when it is warm
        self.tally = Tally(begin, begin + options["seconds"])
        self.answers = 0
        self.memory: list[float] = []

    async def run(self) -> dict[str, Any]:
        """All of it."""
        watching = asyncio.create_task(self._watch())
        started = time.process_time(), time.monotonic()
        await (self._closed_loop() if self.closed else self._open_loop())
        used = (time.process_time() - started[0]) / (time.monotonic() - started[1])
        until = time.monotonic() + self.options.get("wait_seconds", 90)
        while self.under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        watched = await watching
        found = self._found(used)
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()
        return {**found, **watched}

    def _found(self, used: float) -> dict[str, Any]:
        tally = self.tally
        hung = tally.sent - sum(tally.outcomes.values())
        return {
            "seconds": self.options["seconds"],
            "sent": tally.sent,
            "answers_per_second": tally.done_inside / self.options["seconds"],
            "outcomes": {**tally.outcomes, **({"hung": hung} if hung else {})},
            "refused_without_retry_after": tally.without_retry,
            "latency_ms": {name: percentiles(values) for name, values in tally.seconds.items()},
            "most_connections": self.most_open,
            "late_ms": 1000 * self.late,
            "answer_bytes": tally.bytes,
            "own_cpu_share": used,
        }

    async def _watch(self) -> dict[str, Any]:
        """The server's processor time while it is measured, and its memory until the last answer."""
        pid = self.options.get("pid")
        await self._begins()
        if pid is None:
            return {}
        cpu = servers.cpu_seconds(pid)
        found = {}
        while self.under_way or time.monotonic() < self.tally.end:
            self.memory.append(servers.resident_mb(pid))
            pause = _WATCH_SECONDS
            if "server_cpu_seconds" not in found:
                pause = min(pause, max(0.0, self.tally.end - time.monotonic()))
            await asyncio.sleep(pause)
            if "server_cpu_seconds" not in found and time.monotonic() >= self.tally.end:
                found = {"server_cpu_seconds": servers.cpu_seconds(pid) - cpu}
            if time.monotonic() > self.tally.end + self.options.get("wait_seconds", 90):
                break
        return {**found, "server_mb": self.memory, "server_peak_mb": max(self.memory)}

    async def _begins(self) -> None:
        await asyncio.sleep(max(0.0, self.warm_until - time.monotonic()))
        if not self.closed:
            return
        while self.options.get("warm_seconds") and self.answers < 2 * self.options["clients"]:
            await asyncio.sleep(_LOOK_SECONDS)
        self.tally.begin = time.monotonic()
        self.tally.end = self.tally.begin + self.options["seconds"]

    async def _closed_loop(self) -> None:
        for _ in range(self.options["clients"]):
            connection = await self._connect()
            self._send(connection, time.monotonic())
        while (left := self.tally.end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_SECONDS))

    async def _open_loop(self) -> None:
        draw = random.Random(0)
        due = time.monotonic()
        waiting = set()
        while (due := due + draw.expovariate(self.options["rate"])) < self.tally.end:
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            else:
                self.late = max(self.late, -pause)
            if (connection := self._kept()) is not None:
                self._send(connection, due)
                continue
            task = asyncio.create_task(self._send_on_new(due))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)

    def _kept(self) -> Connection | None:
        """A connection that is idle and fresh."""
        while self.idle:
            connection = self.idle.pop()
            if connection.transport is None:
                continue
            if time.monotonic() - connection.since < _KEPT_SECONDS:
                return connection
            connection.transport.close()
        return None

    async def _send_on_new(self, due: float) -> None:
        if len(self.connections) >= self.options.get("most_connections", 4000):
            self._count(due)
            self.tally.add(due, "no connection left")
            return
        try:
            connection = await self._connect()
        except OSError:
            self._count(due)
            self.tally.add(due, "lost")
            return
        self._send(connection, due)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(self)
        self.connections.add(connection)
        self.most_open = max(self.most_open, len(self.connections))
        try:
            await loop.create_connection(lambda: connection, "127.0.0.1", self.options["port"])
        except OSError:
            self.connections.discard(connection)
            raise
        return connection

    def _count(self, due: float) -> None:
        if self.tally.begin <= due < self.tally.end:
            self.tally.sent += 1

    def _send(self, connection: Connection, due: float) -> None:
        self._count(due)
        if connection.transport is None:  # the server has closed it meanwhile
            self.tally.add(due, "lost")
            return
        self.under_way += 1
        connection.ask(self.requests[self.next], due)
        self.next = (self.next + 1) % len(self.requests)

    def answered(self, connection: Connection, due: float, status: str, retry: bool, size: int) -> None:
        """A connection has its answer."""
        self.under_way -= 1
        self.answers += 1
        self.tally.add(due, status, retry, size)
        now = time.monotonic()
        if not self.closed:
            connection.since = now
            self.idle.append(connection)
        elif now < self.tally.end:
            self._send(connection, now)

    def ended(self, connection: Connection, due: float) -> None:
        """A connection has ended, with a request under way where `due` is not below 0."""
        self.connections.discard(connection)
        if due >= 0:
            self.under_way -= 1
            self.tally.add(due, "lost")
        elif not self.closed:
            with contextlib.suppress(ValueError):
                self.idle.remove(connection)


def requests_of(options: dict[str, Any]) -> list[bytes]:
    """Whole requests, as they go over the wire."""
    bodies = json.loads(Path(options["bodies_file"]).read_text(encoding="utf-8"))
    head = f"POST {options['path']} HTTP/1.1\r\nHost: 127.0.0.1:{options['port']}\r\nContent-Type: application/json\r\n"
    made = []
    for body in bodies:
        content = json.dumps(body, ensure_ascii=False).encode()
        made.append(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return made


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "most": 1.0}
    return {name: 1000 * ordered[min(last, int(share * len(ordered)))] for name, share in shares.items()}


def main() -> None:
    """Do what the command line asks."""
    print(json.dumps(uvloop.run(Load(json.loads(sys.argv[1])).run())))


if __name__ == "__main__":
    main()
