"""What the parts of bench/serve.py share: options, servers, inputs, and the load."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import common
from bench.serving import servers

OURS, PLAIN = "bench.serving.our_server", "bench.serving.plain_server"
EMBEDDINGS = "/v1/embeddings"


class Setting:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, bundle: Path, folder: Path) -> None:
        """
        Args:
            options: the command line.
            bundle: to serve.
            folder: for files of this run.
        """
        self.options = options
        self.bundle = bundle
        self.folder = folder
        self.environment = common.environment_for(options.threads)
        self._files = 0

    @contextlib.contextmanager
    def ours(self, bundle: Path | None = None, variant: str | None = None) -> Iterator[servers.Server]:
        """The server under test."""
        asked = {
            "folder": str(bundle or self.bundle),
            "variant": variant or self.options.variant,
            "threads": self.options.threads,
            "workers": self.options.workers,
            "settings": self.options.settings,
        }
        with servers.serving(OURS, asked, self.environment) as server:
            yield server

    @contextlib.contextmanager
    def plain(self) -> Iterator[servers.Server]:
        """The server to compare with."""
        asked = {"folder": str(self.options.model), "threads": self.options.threads}
        with servers.serving(PLAIN, asked, self.environment) as server:
            yield server

    def file(self, content: Any) -> str:
        """The path of a JSON file."""
        self._files += 1
        path = self.folder / f"{self._files}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    def bodies(self, inputs: Sequence[str | list[str]]) -> str:
        """A file of bodies for `/v1/embeddings`."""
        return self.file([{"input": texts, "model": "model"} for texts in inputs])

    def load(self, server: servers.Server, bodies_file: str, **options: Any) -> dict[str, Any]:
        """Load a server from another process; the options and what it finds are in load.py."""
        asked = {"port": server.port, "path": EMBEDDINGS, "bodies_file": bodies_file, "pid": server.pid, **options}
        return common.run_json("bench.serving.load", asked, self.environment)


def require_answers(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, where every request was answered.

    Raises:
        BadInputError: one was not.
    """
    if set(found["outcomes"]) - {"200"}:
        raise common.BadInputError(f"not every request was answered: {found['outcomes']}")
    return found
