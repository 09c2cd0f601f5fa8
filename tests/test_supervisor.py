"""Servers in processes of their own, under load: they end, lose a worker, get new ones."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.served import WAIT_SECONDS, Served, embed, serving
from tests.waiting import until

CLIENTS = 8

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several workers need another system")


class Load:
    """Clients that keep their connections and send one request after the other, until nobody listens."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.answered = 0
        self.lost: list[str] = []
        """Of requests that were sent: what happened instead of an answer."""
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        connection = self.served.connect()
        while not self.stop.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                return
            try:
                status, _ = embed(connection, f"a text of client {number}")
            except (HTTPException, OSError) as error:
                self._count(repr(error))
                connection.close()
            else:
                self._count(None if status == 200 else f"status {status}")
        connection.close()

    def _count(self, failure: str | None) -> None:
        with self._lock:
            if failure is None:
                self.answered += 1
            else:
                self.lost.append(failure)

    def goes_on(self) -> None:
        """Wait for more answers than requests that can be on their way."""
        before = self.answered
        until(lambda: self.answered > before + 4 * CLIENTS)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


@contextmanager
def load(served: Served) -> Iterator[Load]:
    clients = Load(served)
    try:
        clients.goes_on()
        yield clients
    finally:
        clients.stop.set()
        clients.join()


def test_sigterm_loses_nothing(tiny_bundle: Path) -> None:
    with serving(tiny_bundle) as served, load(served) as clients:
        served.signal(signal.SIGTERM)
        clients.join()
        assert clients.lost == []
        assert served.wait() == 0


def test_workers_share_connections_are_replaced_one_by_one_and_end_together(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, "--workers", "2", TMPDIR=str(tmp_path)) as served:
        connections = [served.connect() for _ in range(64)]
        for connection in connections:
            connection.connect()
        (file,) = tmp_path.glob("onnxpress-metrics-*/connections")

        def counts() -> list[int]:
            return [count for (count,) in struct.iter_unpack("q", file.read_bytes())]

        until(lambda: sum(counts()) == 64)
        assert min(counts()) >= 16  # of 32, but a worker may not run for a while
        for connection in connections:
            connection.close()
        with load(served) as clients:
            renew_and_end(served, clients)
        assert list(tmp_path.iterdir()) == []


def renew_and_end(served: Served, clients: Load) -> None:
    before = served.workers()
    assert len(before) == 2
    served.signal(signal.SIGHUP)
    served.wait_for("all workers are new")
    clients.goes_on()
    assert clients.lost == []
    assert len(served.workers()) == 2
    assert not set(before) & set(served.workers())
    served.signal(signal.SIGTERM)
    clients.join()
    assert clients.lost == []
    assert served.wait() == 0


def test_a_worker_that_is_killed_is_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, "--workers", "2", TMPDIR=str(tmp_path)) as served, load(served) as clients:
        victim, other = served.workers()
        (metrics,) = tmp_path.glob("onnxpress-metrics-*")
        assert f"PROMETHEUS_MULTIPROC_DIR={metrics}" in Path(f"/proc/{victim}/environ").read_text().split("\0")
        gauges = [metrics / f"gauge_livesum_{pid}.db" for pid in (victim, other)]
        for gauge in gauges:
            gauge.touch()
        os.kill(victim, signal.SIGKILL)
        served.wait_for(f"worker {victim} ended .*SIGKILL.*replaced")
        assert [gauge.exists() for gauge in gauges] == [False, True]
        clients.goes_on()
        until(lambda: len(served.workers()) == 2)
        assert other in served.workers()
        # A client had one request on its way, and it was with this worker or not.
        assert len(clients.lost) <= CLIENTS
        lost = len(clients.lost)
        clients.goes_on()
        assert len(clients.lost) == lost


def test_a_worker_that_hangs_is_replaced_and_those_without_a_parent_end(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("worker_timeout_seconds = 6")
    with serving(tiny_bundle, "--workers", "2", "--config", tmp_path / "config.toml", TMPDIR=str(tmp_path)) as served:
        victim, other = served.workers()
        os.kill(victim, signal.SIGSTOP)
        served.wait_for(f"worker {victim} has given no sign of life")
        until(lambda: victim not in served.workers() and len(served.workers()) == 2)
        assert other in served.workers()
        assert embed(served.connect())[0] == 200
        workers = served.workers()
        served.process.kill()
        for worker in workers:
            until(lambda worker=worker: has_ended(worker))
        assert list(tmp_path.glob("onnxpress-metrics-*")) == []


def has_ended(pid: int) -> bool:
    try:
        # An orphan that nobody waits for stays as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_second_signal_ends_at_once(tiny_bundle: Path) -> None:
    with serving(tiny_bundle, "--workers", "2") as served:
        held = served.connect()
        held.putrequest("POST", "/v1/embeddings")
        held.putheader("Content-Length", "10")
        held.endheaders(b"{")
        workers = served.workers()
        served.signal(signal.SIGINT)
        time.sleep(0.2)
        assert served.process.poll() is None
        served.signal(signal.SIGTERM)
        assert served.wait() == 128 + signal.SIGTERM
        for worker in workers:
            until(lambda worker=worker: has_ended(worker))
        held.close()


def test_what_keeps_all_workers_from_starting_is_said_once(tmp_path: Path) -> None:
    with serving(tmp_path / "nothing", "--workers", "3", ready=False) as served:
        assert served.wait() == 2
        assert served.lines == [f"onnxpress: there is no bundle folder at {tmp_path / 'nothing'}\n"]


def test_workers_that_die_while_they_start_are_not_tried_for_ever(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'onnxpress.runtime.server.worker' in sys.orig_argv: os._exit(7)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serving("nothing", "--workers", "2", ready=False, PYTHONPATH=path) as served:
        assert served.wait() == 2
        assert served.lines[-1] == "onnxpress: a worker ended while it loaded the models (exit status 7)\n"
