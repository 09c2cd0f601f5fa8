"""The server under test: `python -m bench.serving.our_server '{"bundles": [PATH], "port": 8000, ...}'`."""

from __future__ import annotations

import json
import sys

from onnxpress.runtime.server import ServedBundle, ServerSettings
from onnxpress.runtime.server.running import run


def main() -> int:
    """Serve until told to end."""
    options = json.loads(sys.argv[1])
    bundle = ServedBundle(
        options["folder"], "model", options.get("variant"), settings=options.get("settings"), threads=options["threads"]
    )
    return run(ServerSettings((bundle,), port=options["port"], workers=options.get("workers", 1)))


if __name__ == "__main__":
    sys.exit(main())
