"""A server of the tiny generator, in this process or as one of its own: `python -m tests.text_server FOLDER`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxpress.runtime.generation.generator import Generator
from onnxpress.runtime.runner import BatchingRunner
from onnxpress.runtime.server import Limits, ServerSettings, create_app
from onnxpress.runtime.server.registry import Models, ServedModel
from tests.tiny_generator import make_bundle, opening

ROOT = Path(__file__).resolve().parents[1]
LIMITS = Limits(streams=3, waiting=64, tokens=4000, items=16, seconds=60)
STEP_SECONDS = 0.01
"""Of each round of the engine in a process of its own: what a client does has time to arrive."""


@contextlib.contextmanager
def text_app(folder: Path, limits: Limits = LIMITS, **generation: Any) -> Iterator[tuple[Any, Generator]]:
    """The application, and the generator behind its model "tiny"."""
    with opening(make_bundle(folder)) as open_with:
        generator = open_with(generation)
        runner = BatchingRunner(
            generator, most_waiting=limits.waiting, seconds=limits.seconds, most_tokens=limits.tokens
        )
        served = ServedModel("tiny", "text-generation", generator, runner, 0)
        yield create_app(ServerSettings.of(["tiny"], limits=limits), Models([served])), generator


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Generator]]:
    with text_app(tmp_path_factory.mktemp("bundle")) as both:
        yield both


@pytest.fixture
def app(served: tuple[Any, Generator]) -> Any:
    return served[0]


@pytest.fixture
def generator(served: tuple[Any, Generator]) -> Generator:
    return served[1]


@contextlib.contextmanager
def running() -> Iterator[str]:
    """A process that serves it, slowly. Gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "tests.text_server", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            try:
                assert port, "the server did not start"
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def _serve(folder: Path) -> None:
    import uvicorn

    with text_app(folder) as (app, generator):
        advance = generator.engine._scheduler.advance

        def slowly() -> None:
            time.sleep(STEP_SECONDS)
            advance()

        generator.engine._scheduler.advance = slowly  # type: ignore[method-assign]

        async def state() -> dict[str, Any]:
            return {**dataclasses.asdict(generator.engine.state), "streams": app.state.service.streams}

        app.get("/test/state")(state)
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # of its connections: a reader stalls soon
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)  # who knows the port may come
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
