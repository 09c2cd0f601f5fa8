"""runtime/server/metrics.py: what several worker processes say together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from onnxpress.runtime.server.settings import Limits
from tests.gated_app import samples, value

ROOT = Path(__file__).parent.parent
WORKER = """
import json, sys, prometheus_client
from onnxpress.runtime.server import ServerSettings, create_app
from tests.gated_app import ask, embed

app = create_app(ServerSettings.of(["tiny=" + sys.argv[1]]))
for line in sys.stdin:
    if line == "embed\\n":
        answer = embed(app, "a cat").json()["usage"]["prompt_tokens"]
    else:
        answer = ask(app, "GET", "/metrics").text
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """A process with an application, told what to do through its standard input."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(bundle)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def tell(self, what: str) -> Any:
        stdin, stdout = _pipes(self.process)
        stdin.write(f"{what}\n")
        stdin.flush()
        return json.loads(stdout.readline())


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@pytest.fixture
def workers(tiny_bundle: Path, tmp_path: Path) -> Iterator[list[Worker]]:
    workers = [Worker(tiny_bundle, tmp_path) for _ in range(2)]
    yield workers
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
        for pipe in _pipes(worker.process):
            pipe.close()


def test_any_worker_gives_the_sum_over_all(workers: list[Worker], tmp_path: Path) -> None:
    first, second = workers
    tokens = first.tell("embed") + second.tell("embed") + second.tell("embed")
    first.tell("metrics")  # looks at its own state, as it does once a second
    found = samples(second.tell("metrics"))
    assert value(found, "requests_total", route="/v1/embeddings", status="200", model="tiny") == 3
    assert value(found, "tokens_in_total", model="tiny") == tokens
    assert value(found, "batch_seconds_count", model="tiny") == 3
    assert value(found, "request_seconds_bucket", route="/v1/embeddings", model="tiny", le="+Inf") == 3
    assert value(found, "ready_workers") == 2
    assert value(found, "queue_limit", model="tiny") == 2 * Limits().waiting
    assert len([labels for name, labels in found if name == "model_info"]) == 1

    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    forget = "import sys; from prometheus_client.multiprocess import mark_process_dead as f; f(int(sys.argv[1]))"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", forget, str(first.process.pid)], env=environment, check=True)
    left = samples(second.tell("metrics"))
    assert value(left, "ready_workers") == 1
    assert value(left, "memory_bytes", kind="resident") < value(found, "memory_bytes", kind="resident")
    assert value(left, "requests_total", route="/v1/embeddings", status="200", model="tiny") == 3
